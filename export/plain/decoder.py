"""Which GGUF models are exported without torch, and what of a configuration their graphs depend on.

Graphs of a family differ in sizes only. The families here are Llama and its heirs: rotary positions, RMS norms, gated
SiLU. What a file asks for beyond that needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from paceline.export.errors import ExportError
from paceline.export.gguf.unpack import Unpacked
from paceline.export.passes import Floats
from paceline.export.positions import PLAIN_ROPE, divided, longest_text, plain_frequencies

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TORCH = (
    "pip install 'paceline[export]' --extra-index-url https://download.pytorch.org/whl/cpu "
    "(in a clone: -c constraints.txt '.[export]')"
)
_BIASED = ("q", "k", "v")
_EPSILONS = (1e-9, 1e-2)
"""Between them a norm is found in torch by its epsilon."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes and choices of one model."""

    kind: str
    """transformers' model type."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    context: int
    """Longest text in tokens."""
    epsilon: float
    frequencies: Floats
    """float32[head_dim / 2]."""
    tied: bool
    biased: bool
    """Queries, keys and values have a bias."""
    normed_heads: bool
    """Queries and keys have a norm of each head."""
    window: int
    """Positions that a row sees, 0 for all."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter by transformers' name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for number in range(self.layers):
            at = f"model.layers.{number}"
            found |= {
                f"{at}.self_attn.q_proj.weight": (queries, self.hidden),
                f"{at}.self_attn.k_proj.weight": (keys, self.hidden),
                f"{at}.self_attn.v_proj.weight": (keys, self.hidden),
                f"{at}.self_attn.o_proj.weight": (self.hidden, queries),
                f"{at}.mlp.gate_proj.weight": (self.inner, self.hidden),
                f"{at}.mlp.up_proj.weight": (self.inner, self.hidden),
                f"{at}.mlp.down_proj.weight": (self.hidden, self.inner),
                f"{at}.input_layernorm.weight": (self.hidden,),
                f"{at}.post_attention_layernorm.weight": (self.hidden,),
            }
            if self.biased:
                found |= {
                    f"{at}.self_attn.{part}_proj.bias": (queries if part == "q" else keys,)
                    for part in _BIASED
                }
            if self.normed_heads:
                found |= {f"{at}.self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
        found["model.norm.weight"] = (self.hidden,)
        return found if self.tied else found | {"lm_head.weight": (self.vocab, self.hidden)}


def decoder_of(made: Unpacked) -> Decoder:
    """What a GGUF model is. Raises ExportError for one that needs torch, or whose tensors are not those of its kind."""
    config, path = made.weights.config, made.path
    kind, rope = str(config["model_type"]), config.get("rope_parameters") or {}
    if kind not in FAMILIES:
        raise needs_torch(path, f"the architecture {kind}")
    if rope.get("rope_type") not in PLAIN_ROPE:
        raise needs_torch(path, f"rotary positions of the kind {rope.get('rope_type')}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise needs_torch(path, f"biases in the architecture {kind}")
    epsilon = config["rms_norm_eps"]
    if epsilon is None or not _EPSILONS[0] <= epsilon < _EPSILONS[1]:
        raise needs_torch(path, f"an epsilon of {epsilon} in its norms")
    if config["head_dim"] % 2 or config["num_attention_heads"] % config["num_key_value_heads"]:
        raise needs_torch(path, "heads of such sizes")
    context, window = longest_text(SimpleNamespace(**config)), config.get("sliding_window") or 0
    half = config["head_dim"] // 2
    found = Decoder(
        kind=kind,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        inner=config["intermediate_size"],
        vocab=config["vocab_size"],
        context=context,
        epsilon=epsilon,
        frequencies=divided(made.weights.file, plain_frequencies(rope, half)),
        tied=config["tie_word_embeddings"],
        biased=kind == "qwen2",
        normed_heads=kind == "qwen3",
        window=window if window < context else 0,
    )
    _compare(made, found)
    return found


def needs_torch(path: object, what: str) -> ExportError:
    """An error that says for what torch is needed, and how to have it."""
    return ExportError(f"{path}: {what}: exporting this needs torch: {TORCH}")


def _compare(made: Unpacked, found: Decoder) -> None:
    """Raise ExportError where the tensors are not those that the metadata describe."""
    if found.layers > len(made.weights.file.tensors):
        raise ExportError(
            f"{made.path} (its metadata) says {found.layers} layers, and the weights are only "
            f"{len(made.weights.file.tensors)} tensors: fetch the files again"
        )
    meant, held = found.shapes(), made.weights.shapes()
    if lacking := sorted(meant.keys() - held.keys()):
        raise ExportError(f"{made.path} lacks weights of {found.kind}, such as {lacking[0]}: fetch it again")
    if more := sorted(held.keys() - meant.keys()):
        raise ExportError(
            f"{made.path} holds weights that {found.kind} does not have, such as {more[0]}: not carried"
        )
    for name, shape in meant.items():
        if held[name] != shape:
            raise ExportError(
                f"{made.path}: {name} has the shape {list(held[name])} in the weights and {list(shape)} by its "
                "metadata: fetch it again"
            )

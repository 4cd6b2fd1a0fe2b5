"""Write the scale model: the embedded storyteller's function at the cost of a 0.5 B or 1 B model.

    python tests/bench/scale_model.py OUT [--size 500M|1B|tiny] [--head NAME=DIR]
    paceline export OUT/target BUNDLE --quant int4 --drafter small=OUT/small --drafter wide=OUT/wide \\
        [--head NAME=OUT/NAME]
    python tests/bench/scale_model.py OUT --compare BUNDLE
    paceline bench -b BUNDLE --temperature 0

OUT/target has the very shape of the random models that engines are compared on (500M: 443 M parameters, hidden
1024, 24 layers, 16/8 heads, feed-forward 4096, vocabulary 32000; 1B: 1236 M, the shape of Llama-3.2-1B), OUT/small is
the storyteller's drafter as it is (0.7 M parameters: a lucky ratio that no real pair has), OUT/wide is that
drafter at about a twentieth of the target's cost and OUT/heavy at about an eighth, as many real pairs have it. What
they answer is what the storyteller answers, so acceptance is real; what they cost is what such models cost. OUT/NAME
is a head that was trained for the storyteller (`paceline train head`) as a head of the target: as wide, with heads and
neurons in the target's proportion; it knows the tokens that it knew. Always call results of it what they are: of the
scale model.

Writing checks the logits against the storyteller's in float32; --compare does so for an exported bundle.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from cache_quality import model_of
from safetensors.numpy import save_file
from transformers import LlamaForCausalLM, logging

from paceline.embedded import embedded_bundle
from paceline.export.heads.checkpoint import VOCABULARY, read_trained
from paceline.export.heads.config import CONFIG, WEIGHTS
from paceline.export.heads.scaling import widen_head
from paceline.export.scale import Floats, Halves, Sizes, check_sizes, widen
from paceline.export.training.vocabulary import CHAT_TEMPLATE
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.loading import load
from paceline.runtime.model.processors import default_threads

TARGETS = {
    "500M": Sizes(1024, 24, 16, 8, 64, 4096, 32000, tied=False),
    "1B": Sizes(2048, 16, 32, 8, 64, 8192, 128256, tied=True),
    "tiny": Sizes(512, 9, 8, 4, 64, 1536, 4352, tied=False),
}
DRAFTERS = {
    "500M": {
        "wide": Sizes(384, 4, 12, 4, 32, 1536, 32000, tied=True),
        "heavy": Sizes(768, 4, 24, 8, 32, 3072, 32000, tied=True),
    },
    "1B": {
        "wide": Sizes(384, 8, 12, 4, 32, 1536, 128256, tied=True),
        "heavy": Sizes(768, 8, 24, 8, 32, 3072, 128256, tied=True),
    },
    "tiny": {
        "wide": Sizes(192, 3, 6, 2, 32, 768, 4352, tied=True),
        "heavy": Sizes(384, 3, 12, 4, 32, 1536, 4352, tied=True),
    },
}
"""The tiny ones are for trying this script."""
CONTEXT = 512
SHARD = 1 << 29
UNLIKELY = 64
STORIES = (
    "Tell me a story about a dog and a red ball.",
    "Tell me a story about a princess and a frog.",
    "Tell me a story about a boat and a storm.",
    "Tell me a story about a girl and a lost key.",
)


def read_weights(graph: Path) -> dict[str, Floats]:
    """The checkpoint that a graph with 16-bit weights was exported from, under its Hugging Face names."""
    model = onnx.load(str(graph), load_external_data=False)
    data = graph.with_suffix(".onnx.data").read_bytes()
    found = {}
    for tensor in model.graph.initializer:
        if "weight" not in tensor.name and ".lifted_tensor_" not in tensor.name:
            continue
        values = _values(tensor, data)
        if values.ndim == 3:  # packed: tiles of 16 columns
            values = values.transpose(0, 2, 1).reshape(-1, values.shape[1]).T
        words = tensor.name.removeprefix("model.").split(".lifted_tensor_")
        for name, matrix in _unfused(words[0], values) if len(words) == 2 else [(words[0], values)]:
            found[name.replace("lm_head.weight", "model.embed_tokens.weight").removesuffix(".fp16")] = matrix
    return found


def _values(tensor: onnx.TensorProto, data: bytes) -> Floats:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        where = {entry.key: entry.value for entry in tensor.external_data}
        raw = np.frombuffer(data, kind, int(np.prod(tensor.dims)), int(where["offset"]))
        return raw.reshape(tensor.dims).astype(np.float32)
    return onnx.numpy_helper.to_array(tensor).astype(np.float32)


def _unfused(name: str, matrix: Floats) -> Iterator[tuple[str, Floats]]:
    """Matrices stand transposed in the graph, and those that read the same are one."""
    together = matrix.T
    if name.endswith("q_proj"):
        hidden = len(matrix)
        rest = (len(together) - hidden) // 2
        parts = zip("qkv", np.split(together, [hidden, hidden + rest]), strict=True)
        yield from ((name.replace("q_proj", f"{part}_proj.weight"), rows) for part, rows in parts)
    elif name.endswith("gate_proj"):
        gate, up = np.split(together, 2)
        yield from ((f"{name}.weight", gate), (name.replace("gate", "up") + ".weight", up))
    else:
        yield f"{name}.weight", together


def sizes_of(weights: dict[str, Floats], head_dim: int) -> Sizes:
    """Read off the shapes."""
    block = "model.layers.0."
    vocab, hidden = weights["model.embed_tokens.weight"].shape
    rows = [len(weights[f"{block}{name}_proj.weight"]) for name in ("self_attn.q", "self_attn.k", "mlp.up")]
    layers = sum("input_layernorm" in name for name in weights)
    return Sizes(
        hidden, layers, rows[0] // head_dim, rows[1] // head_dim, head_dim, rows[2], vocab, tied=True
    )


def write_checkpoint(out: Path, sizes: Sizes, tensors: Iterable[tuple[str, Halves]], bundle: Path) -> None:
    """A Hugging Face folder of float16 weights, written in pieces of half a gigabyte."""
    out.mkdir(parents=True, exist_ok=True)
    held: dict[str, Any] = {}
    index: dict[str, str] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(held, out / name, {"format": "pt"})
        index.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in tensors:
        held[name] = np.ascontiguousarray(tensor)
        total += tensor.nbytes
        if sum(t.nbytes for t in held.values()) > SHARD:
            flush()
    if held:
        flush()
    _write(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    _write(out / "config.json", _config(sizes))
    _write_text_side(out, bundle)


def _config(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.ffn,
        "vocab_size": sizes.vocab,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": [0, 3],
        "pad_token_id": 0,
    }


def _write_text_side(out: Path, bundle: Path) -> None:
    shutil.copyfile(bundle / "tokenizer.json", out / "tokenizer.json")
    said = json.loads((bundle / "generation.json").read_text(encoding="utf-8"))
    names = {"bos_token": said["bos_token"], "eos_token": said["eos_token"], "chat_template": CHAT_TEMPLATE}
    _write(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    penalty = {"repetition_penalty": said["repetition_penalty"]}
    _write(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": said["eos_ids"], **penalty})


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2).encode(), private=False)


def told() -> list[list[int]]:
    """Token ids of a few conversations with the storyteller."""
    with load(embedded_bundle(), drafter="none") as session:
        found = []
        for request in STORIES:
            session.reset()
            prompt = session.chat_tokens([{"role": "user", "content": request}])
            events = session.generate(prompt, max_tokens=300)
            found.append([*prompt, *(event.token for event in events if event.token is not None)])
        return found


def logits_of(bundle: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """float32[N, V] by a bundle, a token at a time."""
    model = model_of(open_bundle(bundle), None, default_threads())
    return np.stack([model.extend([token]).copy() for token in ids])


def torch_logits(folder: Path, stories: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    """The same of a checkpoint, in float32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in stories]


def report(what: str, theirs: list[Any], ours: list[Any]) -> None:
    """How far logits are from those of the storyteller."""
    a, b = np.concatenate(theirs), np.concatenate(ours)
    vocab = a.shape[1]
    worst = np.abs(a - b[:, :vocab]).max()
    same = (a.argmax(1) == b.argmax(1)).mean()
    log_a, log_b = _log_softmax(a), _log_softmax(b)
    kl = (np.exp(log_a) * (log_a - log_b[:, :vocab])).sum(1).mean()
    added = np.exp(log_b[:, vocab:]).sum(1)
    gap = (b[:, :vocab].max(1) - b[:, vocab:].max(1)).min() if b.shape[1] > vocab else np.inf
    print(
        f"{what}: {len(a)} positions, largest logit difference {worst:.2g} (largest logit {np.abs(a).max():.0f}), "
        f"same best token in {100 * same:.2f} %, divergence {kl:.2g} nats, "
        f"added tokens {gap:.1f} below the best at least, with {added.mean():.1e} of the probability"
    )


def _log_softmax(x: Any) -> Any:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def write_head(out: Path, head: Path, small: Sizes, big: Sizes, seed: int) -> None:
    """A head of the storyteller as one of the target."""
    config, tensors = widen_head(read_trained(head), small, big, seed)
    out.mkdir(parents=True)
    tensors[VOCABULARY] = tensors[VOCABULARY].astype(np.int32)
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, out / WEIGHTS)
    _write(out / CONFIG, msgspec.to_builtins(config))
    print(f"{out}: {sum(values.size for values in tensors.values()) / 1e6:.0f} M parameters")


def write_all(out: Path, size: str, seed: int, heads: dict[str, Path]) -> None:
    """Target, drafters and heads, and the check of both wide models."""
    bundle = embedded_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    shapes = {"target": TARGETS[size], **DRAFTERS[size]}
    stories = told()
    for name in shapes:
        part = manifest["target"] if name == "target" else manifest["drafters"]["small"]
        weights = read_weights(bundle / part["graph"])
        small = sizes_of(weights, part["head_dim"])
        check_sizes(small, shapes[name])
        if name == "target":
            for title, head in heads.items():
                write_head(out / title, head, small, shapes[name], seed)
        plain = out / ("storyteller" if name == "target" else "small")
        write_checkpoint(plain, small, ((k, v.astype(np.float16)) for k, v in weights.items()), bundle)
        logits = torch_logits(plain, stories)
        unlikely = np.exp(_log_softmax(np.concatenate(logits))).mean(axis=0).argsort()[:UNLIKELY]
        write_checkpoint(
            out / name, shapes[name], widen(small, weights, shapes[name], unlikely, seed), bundle
        )
        print(f"{out / name}: {shapes[name].parameters / 1e6:.0f} M parameters")
        report("in float32", logits, torch_logits(out / name, stories))
    shutil.rmtree(out / "storyteller")


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=TARGETS, default="500M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--head", action="append", default=[], metavar="NAME=DIR", help="repeatable")
    parser.add_argument("--compare", type=Path, metavar="BUNDLE", help="only compare an exported bundle")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if given.compare is None:
        named = (text.partition("=") for text in given.head)
        write_all(given.out, given.size, given.seed, {name: Path(folder) for name, _, folder in named})
        return
    stories = told()
    embedded = [logits_of(embedded_bundle(), ids) for ids in stories]
    report(given.compare.name, embedded, [logits_of(given.compare, ids) for ids in stories])


if __name__ == "__main__":
    main()

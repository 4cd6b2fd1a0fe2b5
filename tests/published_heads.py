"""EAGLE, Medusa and Hydra heads of random weights in the layouts of those who publish them, and what they compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

HIDDEN, HEADS, KEYS, SIZE, INNER, VOCAB, DRAFT = 48, 4, 2, 12, 64, 320, 100
EAGLE_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB,
    "draft_vocab_size": DRAFT,
    "max_position_embeddings": 2048,
}


def eagle_tensors(table: bool = False) -> dict[str, Tensor]:
    """Names and shapes as SafeAILab/EAGLE saves them."""
    rng = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=rng) / columns**0.5

    known = torch.zeros(VOCAB, dtype=torch.bool)
    known[torch.randperm(VOCAB, generator=rng)[:DRAFT]] = True
    found = {
        "d2t": known.nonzero()[:, 0] - torch.arange(DRAFT),
        "t2d": known,
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN),
        "lm_head.weight": matrix(DRAFT, HIDDEN),
        "norm.weight": 1 + 0.1 * torch.randn(HIDDEN, generator=rng),
        "midlayer.self_attn.q_proj.weight": matrix(HEADS * SIZE, 2 * HIDDEN),
        "midlayer.self_attn.k_proj.weight": matrix(KEYS * SIZE, 2 * HIDDEN),
        "midlayer.self_attn.v_proj.weight": matrix(KEYS * SIZE, 2 * HIDDEN),
        "midlayer.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * SIZE),
        "midlayer.mlp.gate_proj.weight": matrix(INNER, HIDDEN),
        "midlayer.mlp.up_proj.weight": matrix(INNER, HIDDEN),
        "midlayer.mlp.down_proj.weight": matrix(HIDDEN, INNER),
    }
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        found[f"midlayer.{name}.weight"] = 1 + 0.1 * torch.randn(HIDDEN, generator=rng)
    return found | ({"embed_tokens.weight": matrix(VOCAB, HIDDEN)} if table else {})


EAGLE1_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    **{
        name: EAGLE_CONFIG[name]
        for name in ("hidden_size", "intermediate_size", "vocab_size", "rms_norm_eps")
    },
    **{name: EAGLE_CONFIG[name] for name in ("num_attention_heads", "num_key_value_heads", "rope_theta")},
}


def eagle1_tensors(bias: bool = True, table: bool = True) -> dict[str, Tensor]:
    """Names and shapes of EAGLE-1 as SafeAILab/EAGLE saves it."""
    rng = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=rng) / columns**0.5

    place = "layers.0"
    found = {
        "fc.weight": matrix(HIDDEN, 2 * HIDDEN),
        f"{place}.self_attn.q_proj.weight": matrix(HEADS * SIZE, HIDDEN),
        f"{place}.self_attn.k_proj.weight": matrix(KEYS * SIZE, HIDDEN),
        f"{place}.self_attn.v_proj.weight": matrix(KEYS * SIZE, HIDDEN),
        f"{place}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * SIZE),
        f"{place}.mlp.gate_proj.weight": matrix(INNER, HIDDEN),
        f"{place}.mlp.up_proj.weight": matrix(INNER, HIDDEN),
        f"{place}.mlp.down_proj.weight": matrix(HIDDEN, INNER),
        f"{place}.post_attention_layernorm.weight": 1 + 0.1 * torch.randn(HIDDEN, generator=rng),
    }
    if bias:
        found["fc.bias"] = torch.randn(HIDDEN, generator=rng)
    return found | ({"embed_tokens.weight": matrix(VOCAB, HIDDEN)} if table else {})


def eagle1_logits(
    t: dict[str, Tensor],
    table: Tensor,
    head: Tensor,
    tokens: list[int],
    features: Tensor,
    followed: list[int],
) -> Tensor:
    """Logits [D, V] after all of a text, one whole sequence a level; head: the target's."""
    given, found = features, []
    tokens = list(tokens)
    for choice in followed:
        x = torch.cat([table[tokens], given], dim=-1) @ t["fc.weight"].T + t.get("fc.bias", 0)
        out = _layer(t, "layers.0", x, x)
        found.append(out[-1] @ head.T)
        given, tokens = torch.cat([given, out[-1:]]), [*tokens, choice]
    return torch.stack(found)


def medusa_tensors(levels: int = 3, prefix: str = "") -> dict[str, Tensor]:
    """Names and shapes as FasterDecoding/Medusa saves them."""
    rng = torch.Generator().manual_seed(4)
    found = {}
    for level in range(levels):
        found[f"{prefix}{level}.0.linear.weight"] = torch.randn(HIDDEN, HIDDEN, generator=rng) / HIDDEN**0.5
        found[f"{prefix}{level}.0.linear.bias"] = torch.randn(HIDDEN, generator=rng)
        found[f"{prefix}{level}.1.weight"] = torch.randn(VOCAB, HIDDEN, generator=rng)
    return found


HYDRA_CONFIG: dict[str, Any] = {
    "hydra_num_heads": 3,
    "hydra_num_layers": 2,
    "hydra_head_arch": "prefix-mlp",
    "grounded_heads": True,
    "hidden_state_offset": 0,
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
}


def hydra_tensors(prefix: bool = True, dropout: bool = True, blocks: int = 2) -> dict[str, Tensor]:
    """Names and shapes as zankner/Hydra saves them, with what it saves and nobody reads."""
    rng = torch.Generator().manual_seed(6)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=rng) / columns**0.5

    def bias(rows: int = HIDDEN) -> Tensor:
        return 0.5 * torch.randn(rows, generator=rng)

    found = {}
    for level in range(3):
        for block in range(blocks):
            name = f"hydra_mlp.{level}.{2 * block + 1 if dropout else block}"
            columns = HIDDEN if block else (level + 2) * HIDDEN
            for part in ("linear",) if block else ("linear", "res_connection"):
                found |= {f"{name}.{part}.weight": matrix(HIDDEN, columns), f"{name}.{part}.bias": bias()}
        name = f"hydra_lm_head.{level}" + (".1" if dropout else "")
        found |= {f"{name}.weight": 2 * matrix(VOCAB, HIDDEN), f"{name}.bias": bias(VOCAB)}
    if prefix:
        place = "prefix_embeding_layer.layers.0"
        layer = {name: t for name, t in eagle1_tensors().items() if name.startswith("layers.0.")}
        found |= {f"prefix_embeding_layer.{name}": tensor for name, tensor in layer.items()}
        found[f"{place}.input_layernorm.weight"] = 1 + 0.1 * bias()
        found["prefix_embeding_layer.norm.weight"] = 1 + 0.1 * bias()
        found[f"{place}.self_attn.rotary_emb.inv_freq"] = torch.ones(SIZE // 2)
        found["prefix_embeding_layer.embed_tokens.weight"] = matrix(VOCAB, HIDDEN)
    return found


def hydra_logits(
    t: dict[str, Tensor],
    table: Tensor,
    features: Tensor,
    root: int,
    followed: list[int],
    dropout: bool = True,
) -> Tensor:
    """Logits [D, V] after all of a text whose last token is the root, without a prefix layer where it has none."""
    state, layer = features, "prefix_embeding_layer.layers.0"
    if f"{layer}.input_layernorm.weight" in t:
        x = _norm(features, t[f"{layer}.input_layernorm.weight"])
        state = _norm(_layer(t, layer, x, features), t["prefix_embeding_layer.norm.weight"])
    path, found = [state[-1], table[root]], []
    for level, choice in enumerate(followed):
        x, block = torch.cat(path), int(dropout)
        while f"hydra_mlp.{level}.{block}.linear.weight" in t:
            name = f"hydra_mlp.{level}.{block}"
            bent = F.silu(F.linear(x, t[f"{name}.linear.weight"], t[f"{name}.linear.bias"]))
            if f"{name}.res_connection.weight" in t:
                x = F.linear(x, t[f"{name}.res_connection.weight"], t[f"{name}.res_connection.bias"])
            x, block = x + bent, block + 1 + dropout
        name = f"hydra_lm_head.{level}" + (".1" if dropout else "")
        found.append(F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"]))
        path.append(table[choice])
    return torch.stack(found)


def write_published(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    return folder


def eagle_logits(
    t: dict[str, Tensor], table: Tensor, tokens: list[int], features: Tensor, followed: list[int]
) -> Tensor:
    """Logits [D, draft vocabulary] after all of a text, one whole sequence a level, as the reference code has it.

    tokens: of the pairs; followed: what the levels choose.
    """
    given, found = features @ t["fc.weight"].T, []
    tokens = list(tokens)
    for choice in followed:
        out = _midlayer(t, table[tokens], given)
        found.append(_norm(out[-1], t["norm.weight"]) @ t["lm_head.weight"].T)
        given, tokens = torch.cat([given, out[-1:]]), [*tokens, choice]
    return torch.stack(found)


def medusa_logits(t: dict[str, Tensor], hidden: Tensor, levels: int) -> Tensor:
    """Logits [levels, V] from a hidden state [H]."""
    found = []
    for level in range(levels):
        bent = F.silu(hidden @ t[f"{level}.0.linear.weight"].T + t[f"{level}.0.linear.bias"])
        found.append((hidden + bent) @ t[f"{level}.1.weight"].T)
    return torch.stack(found)


def _midlayer(t: dict[str, Tensor], embedded: Tensor, given: Tensor) -> Tensor:
    x = torch.cat(
        [
            _norm(embedded, t["midlayer.input_layernorm.weight"]),
            _norm(given, t["midlayer.hidden_norm.weight"]),
        ],
        dim=-1,
    )
    return _layer(t, "midlayer", x, given)


def _layer(t: dict[str, Tensor], place: str, x: Tensor, given: Tensor) -> Tensor:
    """What comes of `given` by a decoder layer whose attention reads x."""
    count = len(x)
    q, k, v = (
        (x @ t[f"{place}.self_attn.{part}_proj.weight"].T).view(count, -1, SIZE).transpose(0, 1)
        for part in "qkv"
    )
    angles = torch.arange(count)[:, None] / 10000.0 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = (torch.cat([turn, turn], dim=-1) for turn in (angles.cos(), angles.sin()))
    q, k = (y * cos + torch.cat([-y[..., SIZE // 2 :], y[..., : SIZE // 2]], dim=-1) * sin for y in (q, k))
    k, v = (y.repeat_interleave(HEADS // KEYS, dim=0) for y in (k, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(count, -1)
    h = given + seen @ t[f"{place}.self_attn.o_proj.weight"].T
    y = _norm(h, t[f"{place}.post_attention_layernorm.weight"])
    gated = F.silu(y @ t[f"{place}.mlp.gate_proj.weight"].T) * (y @ t[f"{place}.mlp.up_proj.weight"].T)
    return h + gated @ t[f"{place}.mlp.down_proj.weight"].T


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

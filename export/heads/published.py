"""Heads that others published, EAGLE, Medusa and Hydra in their usual layouts, as heads of this project.

EAGLE-1 and EAGLE-3: the names of SafeAILab/EAGLE, which SpecForge, SGLang and vLLM share. Medusa: those of
FasterDecoding/Medusa. Hydra: those of zankner/Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from paceline.export.errors import ExportError
from paceline.export.folder import licence_of
from paceline.export.heads import eagle, hydra
from paceline.export.heads.config import CONFIG, WEIGHTS, HeadConfig, Shapes, Style, TargetId, check_config
from paceline.export.heads.head import Head
from paceline.export.heads.layer import layer_shapes, matrix_shapes
from paceline.export.heads.tensors import check_ascending, check_shapes, load_tensors, shapes_in

MEDUSA_WEIGHTS = "medusa_lm_head.safetensors"
_EAGLE = {
    "fc.weight": "fc.weight",
    "norm.weight": "final_norm.weight",
    "lm_head.weight": "head.weight",
    "midlayer.input_layernorm.weight": "token_norm.weight",
    "midlayer.hidden_norm.weight": "state_norm.weight",
    "midlayer.post_attention_layernorm.weight": "mlp_norm.weight",
    **{f"midlayer.self_attn.{part}_proj.weight": f"layer.{part}.weight" for part in "qkvo"},
    **{f"midlayer.mlp.{part}_proj.weight": f"layer.{part}.weight" for part in ("gate", "up", "down")},
}
_EAGLE1 = {
    "fc.weight": "fc.weight",
    "fc.bias": "fc.bias",
    "layers.0.post_attention_layernorm.weight": "mlp_norm.weight",
    **{f"layers.0.self_attn.{part}_proj.weight": f"layer.{part}.weight" for part in "qkvo"},
    **{f"layers.0.mlp.{part}_proj.weight": f"layer.{part}.weight" for part in ("gate", "up", "down")},
}
_TABLE, _OFFSETS, _KNOWN = "embed_tokens.weight", "d2t", "t2d"
"""Left out where they are the target's; the last says the same as the one before it."""
_EAGLE_STYLE = Style(normed_taps=False, last_norm="logits", whole_table=True)
_EAGLE1_STYLE = replace(eagle.STYLE, whole_table=True)
_EAGLE_DEPTH = 8
_MEDUSA_STYLE = Style(fused=False, own_heads=True)
_MEDUSA_ENDS = {"0.linear.weight": "weight", "0.linear.bias": "bias", "1.weight": "head.weight"}
HYDRA_WEIGHTS = "hydra_lm_head.safetensors"
_PREFIX = "prefix_embeding_layer"  # so they spell it
_HYDRA_LAYER = {
    f"{_PREFIX}.norm.weight": "final_norm.weight",
    f"{_PREFIX}.layers.0.input_layernorm.weight": "state_norm.weight",
    f"{_PREFIX}.layers.0.post_attention_layernorm.weight": "mlp_norm.weight",
    **{f"{_PREFIX}.layers.0.self_attn.{part}_proj.weight": f"layer.{part}.weight" for part in "qkvo"},
    **{
        f"{_PREFIX}.layers.0.mlp.{part}_proj.weight": f"layer.{part}.weight"
        for part in ("gate", "up", "down")
    },
}
_HYDRA_SIZES = ("self_attn.q", "self_attn.k", "mlp.gate")
_ENDS = ("weight", "bias")
_PICKLES = ("pytorch_model.bin", "medusa_lm_head.pt", "hydra_lm_head.pt", "model.pt")


def published(folder: Path, given: Mapping[str, Any], layers: int, head_dim: int) -> Head | None:
    """The head of a folder whose config.json is given, None for none that is known. Raises ExportError."""
    if "medusa_num_heads" in given:
        return _medusa(folder, given)
    if "hydra_num_heads" in given:
        return _hydra(folder, given, head_dim)
    named = given.get("architectures")
    if isinstance(named, list) and any("eagle3" in str(name).lower() for name in named):
        return _eagle3(folder, given, layers)
    if isinstance(named, list) and given.get("num_hidden_layers") == 1:
        return _eagle1(folder, given)
    return None


def _eagle1(folder: Path, given: Mapping[str, Any]) -> Head:
    """Its LM head is the target's, and its table of tokens, too, where it has none."""
    path = _weights_in(folder, WEIGHTS)
    config = _config(
        folder, method="eagle", taps=["hidden"], vocab=given.get("vocab_size"), **_sizes(folder, given)
    )
    held, meant = shapes_in(path), eagle.shapes(config)
    shapes: Shapes = {theirs: meant[ours] for theirs, ours in _EAGLE1.items()}
    if "fc.bias" not in held:  # `bias: false` in the newer ones
        del shapes["fc.bias"]
    if _TABLE in held:
        shapes[_TABLE] = config.vocab, config.hidden
    check_shapes(path, shapes, held)
    loaded, _ = load_tensors(path, shapes, ())
    weights = {_EAGLE1.get(name, "embed.weight"): values for name, values in loaded.items()}
    weights.setdefault("fc.bias", np.zeros(config.hidden, np.float32))
    return Head(config, weights, np.arange(config.vocab), licence_of(folder), _EAGLE1_STYLE)


def _eagle3(folder: Path, given: Mapping[str, Any], layers: int) -> Head:
    path = _weights_in(folder, WEIGHTS)
    config = _config(
        folder,
        method="eagle3",
        taps=_eagle_taps(folder, given, layers),
        vocab=given.get("draft_vocab_size") or given.get("vocab_size"),
        **_sizes(folder, given),
    )
    held = shapes_in(path)
    shapes = _eagle_shapes(config)
    vocab, needs_ids = config.target_vocab, not config.whole
    optional: Shapes = {_TABLE: (vocab, config.hidden), _OFFSETS: (config.vocab,), _KNOWN: (vocab,)}
    for name, shape in optional.items():
        if name in held or (name == _OFFSETS and needs_ids):
            shapes[name] = shape
    check_shapes(path, shapes, held)
    shapes.pop(_KNOWN, None)
    loaded, numbers = load_tensors(path, shapes, (_OFFSETS,))
    weights = {_EAGLE.get(name, "embed.weight"): values for name, values in loaded.items()}
    ids = np.arange(config.vocab) + numbers.get(_OFFSETS, 0)
    order = np.argsort(ids, kind="stable")
    weights["head.weight"] = weights["head.weight"][order]
    check_ascending(path, _OFFSETS, ids[order], vocab)
    return Head(config, weights, ids[order], licence_of(folder), _EAGLE_STYLE)


def _sizes(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What EAGLE's configurations say of sizes, as fields of ours. Raises ExportError for what is not carried."""
    file = folder / CONFIG
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "rms_norm_eps")
    if missing := [name for name in needed if not isinstance(given.get(name), int | float)]:
        raise ExportError(f"{file} lacks {', '.join(missing)}: fetch the head again")
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    named = isinstance(rope, dict)
    kind = rope.get("rope_type", rope.get("type", "default")) if named else rope
    if not named or kind != "default":
        raise ExportError(
            f"{file}: rotary positions of the kind {str(kind)[:20]!r} are not carried in a head"
        )
    wide, heads = given["hidden_size"], given["num_attention_heads"]
    if given.get("target_hidden_size", wide) != wide:
        raise ExportError(f"{file}: a head of another width than its target's is not carried")
    return {
        "hidden": wide,
        "target_vocab": given["vocab_size"],
        "heads": heads,
        "kv_heads": given.get("num_key_value_heads") or heads,
        "head_dim": given.get("head_dim") or wide // max(heads, 1),
        "inner": given["intermediate_size"],
        "rope_theta": rope.get("rope_theta", given.get("rope_theta", 10000.0)),
        "epsilon": given["rms_norm_eps"],
        "depth": _EAGLE_DEPTH,
    }


def _eagle_shapes(c: HeadConfig) -> Shapes:
    meant: Shapes = {"fc.weight": (c.hidden, len(c.taps) * c.hidden), "head.weight": (c.vocab, c.hidden)}
    meant |= layer_shapes(c)
    return {theirs: meant[ours] for theirs, ours in _EAGLE.items()}


def _eagle_taps(folder: Path, given: Mapping[str, Any], layers: int) -> list[str]:
    """Behind the blocks that it names; by default before block 2, the middle one and the last but two."""
    own = given.get("eagle_config")
    ids = own.get("eagle_aux_hidden_state_layer_ids") if isinstance(own, dict) else None
    ids = given.get("eagle_aux_hidden_state_layer_ids", ids)
    if ids is None:
        ids = [1, layers // 2 - 1, layers - 4]
    if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < layers for i in ids):
        raise ExportError(
            f"{folder} reads hidden states of blocks {str(ids)[:60]}, and this target has blocks 0 to {layers - 1}: it "
            "was trained for another one"
        )
    return [f"hidden.{i}" for i in ids]


def _medusa(folder: Path, given: Mapping[str, Any]) -> Head:
    path = _weights_in(folder, MEDUSA_WEIGHTS, WEIGHTS)
    if given.get("medusa_num_layers", 1) != 1:
        raise ExportError(f"{folder / CONFIG}: Medusa heads of several blocks are not carried")
    held = shapes_in(path)
    prefix = next((p for p in ("medusa_head.", "heads.") if any(name.startswith(p) for name in held)), "")
    # The count in config.json is wrong in published folders: that of the weights holds.
    depth = len({name.removeprefix(prefix).partition(".")[0] for name in held})
    table = held.get(f"{prefix}0.1.weight", (given.get("vocab_size", 0), given.get("hidden_size", 0)))
    vocab, wide = table if len(table) == 2 else (0, 0)
    config = _config(
        folder,
        method="medusa",
        hidden=wide,
        target_vocab=vocab,
        taps=["hidden"],
        vocab=vocab,
        heads=1,
        kv_heads=1,
        head_dim=2,
        inner=1,
        rope_theta=10000.0,
        epsilon=1e-5,
        depth=depth,
    )
    sizes: Shapes = {"weight": (wide, wide), "bias": (wide,), "head.weight": (vocab, wide)}
    names = {
        f"{prefix}{level}.{theirs}": f"levels.{level}.{ours}"
        for level in range(depth)
        for theirs, ours in _MEDUSA_ENDS.items()
    }
    shapes: Shapes = {theirs: sizes[ours.split(".", 2)[2]] for theirs, ours in names.items()}
    check_shapes(path, shapes, held)
    weights, _ = load_tensors(path, shapes, ())
    found = {names[name]: values for name, values in weights.items()}
    return Head(config, found, np.arange(vocab), licence_of(folder), _MEDUSA_STYLE)


def _hydra(folder: Path, given: Mapping[str, Any], head_dim: int) -> Head:
    """Hydra (`mlp`) or Hydra++ (`prefix-mlp`). config.json says nothing of most sizes: weights and the target do."""
    path, file = _weights_in(folder, HYDRA_WEIGHTS, WEIGHTS), folder / CONFIG
    arch, depth, blocks = (given.get(f"hydra_{name}") for name in ("head_arch", "num_heads", "num_layers"))
    if arch not in ("mlp", "prefix-mlp") or given.get("grounded_heads") is False:
        raise ExportError(
            f"{file}: of Hydra heads only grounded ones of kinds mlp and prefix-mlp are carried"
        )
    if given.get("hidden_state_offset", 0):
        raise ExportError(f"{file}: a Hydra head that reads another layer than the last one is not carried")
    if not (isinstance(depth, int) and isinstance(blocks, int) and 0 < depth <= 64 and 0 < blocks <= 64):
        raise ExportError(f"{file} lacks hydra_num_heads or hydra_num_layers: fetch the head again")
    held = shapes_in(path)
    dropout = "hydra_lm_head.0.1.weight" in held
    table = held.get("hydra_lm_head.0.1.weight" if dropout else "hydra_lm_head.0.weight", ())
    vocab, wide = table if len(table) == 2 else (0, 0)
    size = given.get("head_dim") or head_dim or 2
    rows = [held.get(f"{_PREFIX}.layers.0.{part}_proj.weight", (0,))[0] for part in _HYDRA_SIZES]
    config = _config(
        folder,
        method="hydra",
        hidden=wide,
        target_vocab=vocab,
        taps=["hidden"],
        vocab=vocab,
        heads=max(1, rows[0] // size),
        kv_heads=max(1, rows[1] // size),
        head_dim=size,
        inner=max(1, rows[2]),
        rope_theta=given.get("rope_theta", 10000.0),
        epsilon=given.get("rms_norm_eps", 1e-6),
        depth=depth,
        layers=int(arch == "prefix-mlp"),
    )
    names = _hydra_names(config, blocks, dropout)
    meant = {**hydra.block_shapes(config, blocks), **_prefix_shapes(config)}
    shapes: Shapes = {theirs: meant[ours] for theirs, ours in names.items()}
    # Nobody reads these: the layer is fed with states, and angles follow from the positions.
    idle = [f"{_PREFIX}.embed_tokens.weight", f"{_PREFIX}.layers.0.self_attn.rotary_emb.inv_freq"]
    check_shapes(path, shapes, {name: shape for name, shape in held.items() if name not in idle})
    loaded, _ = load_tensors(path, shapes, ())
    weights = {names[name]: values for name, values in loaded.items()}
    style = Style(fused=False, entry="state", whole_table=True, own_heads=True, blocks=blocks)
    return Head(config, weights, np.arange(vocab), licence_of(folder), style)


def _hydra_names(c: HeadConfig, blocks: int, dropout: bool) -> dict[str, str]:
    """Our names of its tensors. Dropout, where there was any, takes every second place of a sequence."""
    found = dict(_HYDRA_LAYER) if c.layers else {}
    for level in range(c.depth):
        for block in range(blocks):
            theirs = f"hydra_mlp.{level}.{2 * block + 1 if dropout else block}"
            ours = f"levels.{level}." + (f"blocks.{block}" if block else "linear")
            found |= {f"{theirs}.linear.{end}": f"{ours}.{end}" for end in _ENDS}
            if not block:
                found |= {f"{theirs}.res_connection.{end}": f"levels.{level}.residual.{end}" for end in _ENDS}
        said = f"hydra_lm_head.{level}.1" if dropout else f"hydra_lm_head.{level}"
        found |= {f"{said}.{end}": f"levels.{level}.head.{end}" for end in _ENDS}
    return found


def _prefix_shapes(c: HeadConfig) -> Shapes:
    norms = [f"{name}_norm.weight" for name in ("state", "mlp", "final")]
    return {**matrix_shapes(c, c.hidden), **dict.fromkeys(norms, (c.hidden,))}


def _weights_in(folder: Path, *names: str) -> Path:
    """The first of these files that is there. Raises ExportError for pickles, which run code when they are read."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    for pickle in _PICKLES:
        if (folder / pickle).is_file():
            held = f"{{k: v.clone() for k, v in t.load('{pickle}', weights_only=True).items()}}"
            saved = f"s.save_file({held}, '{names[0]}')"
            raise ExportError(
                f"{folder / pickle} is a pickle, which can run code as it is read: where you trust it, turn it into "
                f'safetensors there: python -c "import torch as t, safetensors.torch as s; {saved}"'
            )
    raise ExportError(f"{folder} has no {names[0]}: fetch the head again")


def _config(folder: Path, **fields: Any) -> HeadConfig:
    nobody = TargetId(name="", graph="", data="")
    try:
        config = msgspec.convert({**fields, "tied": False, "target": msgspec.to_builtins(nobody)}, HeadConfig)
    except msgspec.ValidationError as error:
        raise ExportError(f"{folder / CONFIG} is not that of such a head ({error}): fetch it again") from None
    check_config(config, folder / CONFIG)
    return config

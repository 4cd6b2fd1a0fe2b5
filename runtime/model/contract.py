"""The graph contract: the inputs and outputs of a part of each kind."""

from __future__ import annotations

from paceline.memory.cache import CacheFormat
from paceline.runtime.manifest import BundleError, Part
from paceline.runtime.model.graph import Shape

Shapes = dict[str, Shape]


def contract(part: Part, cache: CacheFormat) -> tuple[Shapes, Shapes]:
    """Inputs and outputs of a graph of these sizes, over a cache of this form.

    T new rows of which R are asked for, W columns of the mask, S rows of the cache. Raises BundleError for an adapter
    that has the name of another of them.
    """
    inputs, outputs = _without_adapters(part, cache)
    if taken := sorted(part.adapters.keys() & (inputs.keys() | outputs.keys())):
        raise BundleError(
            f"{part.graph}: an adapter may not be called {taken[0]!r}, which is the name of an input or output of "
            "every such graph; export again"
        )
    return {name: tuple(shape) for name, shape in part.adapters.items()} | inputs, outputs


def _without_adapters(part: Part, cache: CacheFormat) -> tuple[Shapes, Shapes]:
    inputs: Shapes = {}
    if part.features is not None:
        inputs["features"] = ("T", part.features)
    if part.kind == "head":
        outputs: Shapes = {"logits": ("T", part.ahead, part.vocab)}
        return inputs | {"token_ids": ("T",)}, outputs
    outputs = {"logits": ("R", part.vocab), **dict.fromkeys(part.taps, ("T", part.hidden))}
    inputs |= {
        "token_ids": ("T",),
        "positions": ("T",),
        "tree_mask": ("T", "W"),
        "past_len": (1,),
        "rows": ("R",),
    }
    for i in range(part.layers):
        for kind in ("k", "v"):
            inputs[f"cache_{kind}.{i}"] = (part.kv_heads, "S", part.head_dim)
            if cache == "int8":
                inputs[f"{kind}_scales.{i}"] = (part.kv_heads, "S")
            outputs[f"new_{kind}.{i}"] = (part.kv_heads, "T", part.head_dim)
    if part.rope is not None:
        inputs |= {"inv_freq": (part.rope.dim // 2,), "rope_scale": (1,)}
    return inputs, outputs

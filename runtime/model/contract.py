"""The graph contract: the inputs and outputs of a part of each kind."""

from __future__ import annotations

from paceline.memory.cache import CacheFormat
from paceline.runtime.manifest import BundleError, Part
from paceline.runtime.model.graph import Shape

Shapes = dict[str, Shape]
ODDS = "odds"
"""What a part predicts of acceptance."""


def contract(part: Part, cache: CacheFormat) -> tuple[Shapes, Shapes]:
    """Inputs and outputs of a graph of these sizes, over a cache of this form; of a head the one that reads.

    T new rows of which R are asked for, W columns of the mask, S rows of the cache. Raises BundleError for an adapter
    that has the name of another of them.
    """
    return _with_adapters(part, *_reading(part, cache))


def bias_name(window: int) -> str:
    """The input that says what rows of layers with this window see, 0 without one."""
    return f"bias.{window}" if window else "bias"


def static_contract(part: Part, rows: int, context: int, prompt: bool) -> tuple[Shapes, Shapes]:
    """Inputs and outputs of a static graph. prompt: whether it gives logits of one row only.

    token_ids, positions and rows are int32; a bias, float32 [rows, context + rows], is added to the scores of the
    cache's rows and, behind them, the new ones.
    """
    assert part.static is not None
    asked = 1 if prompt else rows
    inputs: Shapes = {"token_ids": (rows,), "positions": (rows,), "rows": (asked,)}
    inputs |= {bias_name(window): (rows, context + rows) for window in part.static.windows}
    outputs: Shapes = {"logits": (asked, part.vocab), **dict.fromkeys(part.taps, (rows, part.hidden))}
    for i in range(part.layers):
        for kind in ("k", "v"):
            inputs[f"cache_{kind}.{i}"] = (part.kv_heads, context, part.head_dim)
            outputs[f"new_{kind}.{i}"] = (part.kv_heads, rows, part.head_dim)
    return inputs, outputs


def draft_contract(part: Part, cache: CacheFormat, levels: int) -> tuple[Shapes, Shapes]:
    """The same of the graph of a head or a draft model that drafts so many levels.

    noise: added to the logits before the best of a level is taken. tokens: the best, ids of the target. Of a head,
    state: of the last pair of hidden states and token that was read; token: the root, an id of the target; scores:
    logits with noise. Of a draft model, N = T + levels - 1 rows: those that are read, and those of the tokens that
    levels before the last chose; logits: without noise. odds, where the part predicts: as `Model.odds`.
    """
    if part.kind == "decoder":
        return _with_adapters(part, *_drafting(part, cache, levels))
    inputs: Shapes = {"state": (1, part.hidden), "token": (1,), "noise": (levels, part.vocab)}
    if part.layers:
        inputs |= {"past_len": (1,), **_cache(part, cache)}
    outputs: Shapes = {"tokens": (levels,), "scores": (levels, part.vocab)}
    return _with_adapters(part, inputs, outputs)


def _drafting(part: Part, cache: CacheFormat, levels: int) -> tuple[Shapes, Shapes]:
    inputs, outputs = _reading(part, cache)
    del inputs["rows"]
    inputs |= {"positions": ("N",), "tree_mask": ("N", "N"), "noise": (levels, part.vocab)}
    new = {name: (part.kv_heads, "N", part.head_dim) for name in outputs if name.startswith("new_")}
    outputs = {"tokens": (levels,), "logits": (levels, part.vocab), **new}
    return inputs, outputs | ({} if part.predictor is None else {ODDS: (levels, 1)})


def tree_contract(part: Part, cache: CacheFormat, depth: int, width: int) -> tuple[Shapes, Shapes]:
    """The same of the graph of a head that drafts a tree; only `width` nodes of a level have children.

    scale: chances are in proportion to `exp(scale * score)`. tokens, chances: of the children of every node that has
    any, the root first, level after level: the best ids of the target, best first, and the logarithms of their
    chances. parents: for each such node but the root, its place among the children of the nodes of the level above.
    scores: the root's logits with noise.
    """
    inputs: Shapes = {"state": (1, part.hidden), "token": (1,), "noise": (depth, part.vocab), "scale": (1,)}
    if part.layers:
        inputs |= {"past_len": (1,), **_cache(part, cache)}
    later = (depth - 1) * width
    outputs: Shapes = {"tokens": (1 + later, part.children), "chances": (1 + later, part.children)}
    return _with_adapters(part, inputs, outputs | {"parents": (later,), "scores": (1, part.vocab)})


def _with_adapters(part: Part, inputs: Shapes, outputs: Shapes) -> tuple[Shapes, Shapes]:
    if taken := sorted(part.adapters.keys() & (inputs.keys() | outputs.keys())):
        raise BundleError(
            f"{part.graph}: an adapter may not be called {taken[0]!r}, which is the name of an input or output of "
            "every such graph; export again"
        )
    return {name: tuple(shape) for name, shape in part.adapters.items()} | inputs, outputs


def _reading(part: Part, cache: CacheFormat) -> tuple[Shapes, Shapes]:
    inputs: Shapes = {"token_ids": ("T",), "rows": ("R",)}
    if part.features is not None:
        inputs["features"] = ("T", part.features)
    name, columns = part.output
    outputs: Shapes = {name: ("R", columns), **dict.fromkeys(part.taps, ("T", part.hidden))}
    if part.predictor is not None:
        outputs[ODDS] = ("R", 1)
    if part.layers:
        inputs |= {"positions": ("T",), "tree_mask": ("T", "W"), "past_len": (1,), **_cache(part, cache)}
    for i in part.attending:
        for kind in ("k", "v"):
            outputs[f"new_{kind}.{i}"] = (part.kv_heads, "T", part.head_dim)
    if part.rope is not None:
        inputs |= {"inv_freq": (part.rope.dim // 2,), "rope_scale": (1,)}
    return inputs, outputs


def _cache(part: Part, form: CacheFormat) -> Shapes:
    """The rows that a graph reads, of every layer."""
    inputs: Shapes = {}
    for i in range(part.layers):
        for kind in ("k", "v"):
            inputs[f"cache_{kind}.{i}"] = (part.kv_heads, "S", part.head_dim)
            if form == "int8":
                inputs[f"{kind}_scales.{i}"] = (part.kv_heads, "S")
    return inputs

"""One model of a bundle: its graphs, its sizes, and where its weights stand."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import Error
from paceline.runtime.buckets import STATIC_DATA, Buckets

# Bounds beyond any model in use: a manifest with nonsense fails here and not in an allocation.
Positive = Annotated[int, Meta(ge=1, le=2**40)]
Layers = Annotated[int, Meta(ge=0, le=1000)]
Levels = Annotated[int, Meta(ge=1, le=16)]
Streams = Annotated[int, Meta(ge=0, le=15)]
Layer = Annotated[int, Meta(ge=0, le=998)]
TreeShape = Annotated[str, Meta(pattern=r"\A([2-9]|1[0-6])x([1-8])\Z")]
CHILDREN = 8
"""Children of every node of a head's tree that has any; fewer where the head knows fewer tokens."""
Width = Annotated[int, Meta(ge=1, le=2**17)]
Tokens = Annotated[int, Meta(ge=1, le=2**24)]
Token = Annotated[int, Meta(ge=0, lt=2**24)]
Schedule = Literal["joint", "interleaved"]
Measure = Annotated[float, Meta(ge=0, le=1e9)]
Scale = Annotated[float, Meta(gt=0, le=1e12)]
Share = Annotated[float, Meta(ge=0, le=1)]
# No control characters, line separators or marks that turn the direction of text: terminals show these strings.
_LABEL = re.compile("\\A[^\\x00-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069]*\\Z")
_LABEL_LENGTH = 200
Label = Annotated[str, Meta(max_length=_LABEL_LENGTH, pattern=_LABEL.pattern)]
Dtype = Literal["float32", "float16", "bfloat16", "int8", "uint8"]
DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
Size = Annotated[int, Meta(ge=1, le=2**40)]
Shape = Annotated[list[Size], Meta(min_length=1, max_length=4)]
PartKind = Literal["decoder", "streaming decoder", "feature decoder", "head", "exit", "skip"]
AT_ONCE: tuple[PartKind, ...] = ("head", "streaming decoder")
"""What drafts all of its levels in one call."""
Block = Annotated[str, Meta(pattern=r"\A(attention|mlp)\.[0-9]{1,4}\Z")]
"""Half of a layer, by its number."""
WINDOW = 64
"""Tokens of the text that a training step of adapters reads."""
SHARED = "model.onnx.data"
"""The file of weights in the target's folder, which parts without weights of their own read."""
Tap = Annotated[str, Meta(pattern=r"\Ahidden(\.[0-9]{1,4})?\Z")]
RelativePath = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")]


SINCE = {"layout": 2, "weights": 2, "caches": 3, "tokenizer": 7, "training": 7, "streams": 8, "predictor": 8}
SINCE |= {"static": 9}
SINCE |= dict.fromkeys(("kind", "reads", "features", "adapters"), 4)
SINCE |= dict.fromkeys(("vocabulary", "drafts", "method", "accepted"), 5)
SINCE |= dict.fromkeys(("without", "trees", "ranks", "product", "exits", "costs"), 6)
SINCE |= {"split": 9}
"""The schema of manifests that a field of a part came with."""


class BundleError(Error):
    """A bundle that cannot be used; the message is one line that names the cause and the remedy."""


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """In passes of the target over one row, as they were measured where the part was made: elsewhere a prediction.

    draft: a pass of one row. row: one row more for the target to verify.
    """

    draft: Measure
    row: Measure


class Rope(Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary frequencies that depend on the length of the text (dynamic NTK, longrope).

    dynamic: `base`, `factor`, `original_context` and `dim` give the frequencies by formula.
    longrope: `short` and `long` are complete inverse frequencies, chosen by whether the text is longer than
    `original_context`; `short_scale`, `long_scale` multiply cos and sin.
    """

    kind: Literal["dynamic", "longrope"]
    original_context: Tokens
    dim: Annotated[int, Meta(ge=4, le=2**17, multiple_of=2)]
    base: Scale = 10000.0
    factor: Scale = 1.0
    short: list[Measure] = []
    long: list[Measure] = []
    short_scale: Scale = 1.0
    long_scale: Scale = 1.0


class Weight(Struct, frozen=True, forbid_unknown_fields=True):
    """Where one initializer of a graph stands in the `.data` file beside it, row-major and little-endian."""

    dtype: Dtype
    shape: Annotated[list[Size], Meta(min_length=1, max_length=8)]
    offset: Annotated[int, Meta(ge=0, le=2**50, multiple_of=64)]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class Split(Struct, frozen=True, forbid_unknown_fields=True):
    """A target in two graphs over its own weights and cache: its layers up to one, which say early what may follow, and
    the rest, which is fed with their hidden states. Graphs for narrow caches stand beside, see `halves`."""

    layer: Layer
    first: RelativePath
    rest: RelativePath
    named: Annotated[int, Meta(ge=1, le=256)]
    """Tokens that `first` names for each row."""
    recall: Annotated[dict[Layer, Annotated[list[Share], Meta(max_length=64)]], Meta(max_length=64)] = {}
    """By layer, how often the target's choice was among the first 1, 2, 3 ... of them, as training measured; empty
    where nothing was trained."""
    vocab: Tokens | None = None
    """Tokens that `first` knows; None: all of the target's."""
    data: RelativePath | None = None
    """The file of the weights that `first` has besides the target's; None: what it has stands in the graph."""


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the bundle: a graph that follows the graph contract, and its sizes."""

    graph: RelativePath
    architecture: Label
    layers: Layers
    """0 only in a head that has no cache."""
    kv_heads: Width
    head_dim: Width
    hidden: Width
    vocab: Tokens
    """Columns of the logits; may be padded beyond the tokenizer."""
    context: Tokens
    parameters: Positive
    quant: Literal["none", "int8", "int4", "keep"]
    """`keep`: as the blocks of the GGUF file that it was made from."""
    block: Positive | None = None
    window: Positive | None = None
    """The smallest sliding window of any layer."""
    taps: list[Tap] = []
    rope: Rope | None = None
    nodes_per_layer: Measure = 0.0
    """Graph nodes a layer runs after optimisation, for `inspect`."""
    layout: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Version of the packed weight layout; None where no weight is packed."""
    weights: Annotated[dict[Label, Weight], Meta(max_length=2**15)] = {}
    """Initializers that the runtime may load itself; ONNX Runtime reads the others."""
    caches: dict[Literal["fp16", "int8"], RelativePath] = {}
    """The same graph over the same weights, for a cache of 16 or 8 bits."""
    kind: PartKind = "decoder"
    """A streaming decoder says later tokens than the next one in the same pass. A feature decoder is fed with hidden
    states of the target besides tokens; a head too, of which `graph` reads and `drafts` draft; an exit says a token
    after the target's first layers, which `exits` run, and `graph` reads their hidden states; a skip is the target
    `without` some blocks, over the target's own weights and cache."""
    reads: list[Tap] = []
    """Taps of the target that it is fed with, side by side."""
    features: Width | None = None
    """Columns of what it is fed with: as many as these taps have together; of an exit one of them at a time."""
    adapters: Annotated[dict[Label, Shape], Meta(max_length=4096)] = {}
    """Weights that are inputs of the graph, float32: zero, and without effect, where nobody set them."""
    training: RelativePath | None = None
    """The graph of a training step of its adapters, beside `graph`, over the same weights."""
    predictor: Schedule | None = None
    """How what predicts acceptance learns: in every training step, or in turn with the other adapters. None: its graphs
    predict nothing."""
    vocabulary: RelativePath | None = None
    """A file of the target's ids that a head knows, uint32 little-endian, ascending, `vocab` of them; None: 0, 1 ..."""
    drafts: Annotated[dict[Levels, RelativePath], Meta(max_length=16)] = {}
    """Graphs of a head, or of a draft model, that draft so many levels; those for narrow caches stand beside, see
    `draft_for`."""
    trees: Annotated[dict[TreeShape, RelativePath], Meta(max_length=32)] = {}
    """Graphs of a head that draft trees, `DxW`: D levels, W nodes of each level but the last have CHILDREN children."""
    ranks: Annotated[
        list[Annotated[list[Share], Meta(min_length=1, max_length=16)]], Meta(max_length=64)
    ] = []
    """By depth and rank, how often the head's first, second ... choice was right, as training measured."""
    product: bool = False
    """No level of a head or stream knows what the others chose: the law of a level is the same for all parents."""
    streams: Streams = 0
    """Of a streaming decoder: so many of its last ids are no tokens of a text. Right behind a text the row of the first
    says the second token after it, that of the next one the third, and so on."""
    method: Label | None = None
    """How a head drafts, for people: eagle, eagle3, hydra, medusa, dflash, clover, falcon."""
    accepted: Annotated[list[Share], Meta(max_length=64)] = []
    """By depth, the share of a head's greedy drafts that were right where those before were, as training measured."""
    tokenizer: RelativePath | None = None
    """Of a draft model whose vocabulary is not the target's: its own tokenizer.json."""
    without: Annotated[list[Block], Meta(max_length=2000)] = []
    """Of a skip: the blocks of the target that it leaves out."""
    prices: Prices | None = None
    """Of a skip, where its search measured them."""
    static: Buckets | None = None
    """Graphs of fixed sizes for accelerators, beside `graph` and over the same weights."""
    exits: Annotated[dict[Layer, RelativePath], Meta(max_length=64)] = {}
    """Of an exit: by layer, the graph of the target's layers up to that one, over the target's weights and cache."""
    costs: Annotated[dict[Layer, Share], Meta(max_length=64)] = {}
    """Of an exit: by layer, of the bytes that a pass of the target reads how many a draft pass does."""
    split: Split | None = None
    """Of a target: the same in two graphs."""

    @property
    def deepest(self) -> int:
        """Levels that it drafts in one call at most; 0 where it drafts a token a pass."""
        return self.streams + 1 if self.streams else max(self.drafts, default=0)

    @property
    def borrows(self) -> bool:
        """Whether all of its weights are the target's."""
        return self.kind == "skip" or (self.kind == "exit" and not self.layers)

    @property
    def exported(self) -> bool:
        """Whether the profile of an export decides what its graph is: not so of heads, skips and exits."""
        return "decoder" in self.kind

    @property
    def keeps(self) -> list[Tap]:
        """Taps of the target that it reads of the whole text."""
        return [] if self.kind == "exit" and not self.layers else self.reads

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers whose attention it runs."""
        left = {block for block in self.without if block.startswith("attention.")}
        return tuple(layer for layer in range(self.layers) if f"attention.{layer}" not in left)

    def has_form(self, cache: CacheFormat) -> bool:
        """Whether it runs where caches have this form."""
        return cache == "fp32" or not self.layers or cache in self.caches

    def graph_for(self, cache: CacheFormat) -> str:
        """Path of the graph that reads a cache of this form. Raises BundleError where there is none."""
        if cache == "fp32" or not self.layers:
            return self.graph
        if cache not in self.caches:
            raise BundleError(
                f"the bundle has no graph for a cache of {cache} beside {self.graph}: use --cache fp32 "
                "(in Python: cache='fp32'), or export the model again"
            )
        return self.caches[cache]

    def draft_for(self, levels: int, cache: CacheFormat) -> str:
        """Path of its graph that drafts so many levels over a cache of this form: `draft.D[.FORM].onnx`."""
        return self._over(self.drafts[levels], cache)

    def tree_for(self, shape: str, cache: CacheFormat) -> str:
        """The same of a graph of a head that drafts a tree."""
        return self._over(self.trees[shape], cache)

    def exit_for(self, layer: int, cache: CacheFormat) -> str:
        """The same of the graph of the target's layers up to this one, whose cache always has rows."""
        return over_cache(self.exits[layer], cache)

    def _over(self, path: str, cache: CacheFormat) -> str:
        return over_cache(path, cache) if self.layers else path

    def graphs_for(self, cache: CacheFormat) -> tuple[str, ...]:
        """All that runs over a cache of this form, the one that reads first."""
        drafts = [self.draft_for(levels, cache) for levels in sorted(self.drafts)]
        return self.graph_for(cache), *drafts, *(self.tree_for(shape, cache) for shape in sorted(self.trees))

    @property
    def graphs(self) -> tuple[str, ...]:
        """All of its graphs."""
        forms: tuple[CacheFormat, ...] = ("fp32", *self.caches)
        run = [path for form in forms for path in self.graphs_for(form)]
        run += [] if self.training is None else [self.training]
        run += [] if self.static is None else map(self.beside, self.static.names())
        return tuple(dict.fromkeys(run))

    def has_static(self, name: str) -> bool:
        """Whether the file of this name is one of its static graphs over other weights, or a twin of one."""
        apart = self.static is not None and self.static.weights is not None
        return apart and name.endswith(tuple(self.static.names() if self.static is not None else ()))

    def beside(self, file: str) -> str:
        """Path of a file in the folder of its graph."""
        return str(PurePosixPath(self.graph).with_name(file))

    def trains(self, name: str) -> bool:
        """Whether the file of this name is the graph of its training step."""
        return self.training is not None and PurePosixPath(self.training).name == name

    def levels_of(self, name: str) -> int:
        """How many levels the graph in a file of this name drafts; 1 where it only reads."""
        forms: tuple[CacheFormat, ...] = ("fp32", *self.caches)
        named = {PurePosixPath(self.draft_for(n, form)).name: n for n in self.drafts for form in forms}
        for shape in self.trees:
            for form in forms:
                named[PurePosixPath(self.tree_for(shape, form)).name] = tree_shape(shape)[0]
        return named.get(name, 1)

    @property
    def children(self) -> int:
        """Children of every node of its trees that has any."""
        return min(CHILDREN, self.vocab)

    @property
    def output(self) -> tuple[str, int]:
        """What `graph` is asked for, a row each: its name and columns."""
        return ("state", self.hidden) if self.kind == "head" else ("logits", self.vocab)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all adapters."""
        return sum(math.prod(shape) * DTYPE_BYTES["float32"] for shape in self.adapters.values())

    @property
    def data(self) -> str:
        """Path of the file that `weights` are in."""
        if self.borrows:
            return str(PurePosixPath(self.graph).with_name(SHARED))
        return f"{self.graph}.data"

    @property
    def stores(self) -> tuple[str, ...]:
        """Paths of all files that weights of its graphs are in."""
        own = None if self.split is None else self.split.data
        apart = self.static is not None and self.static.weights is not None
        return (self.data, *([] if own is None else [own]), *([self.beside(STATIC_DATA)] if apart else []))


def over_cache(path: str, cache: CacheFormat) -> str:
    """Path of the same graph over a cache of this form, where it stands beside by rule."""
    return path if cache == "fp32" else f"{path.removesuffix('.onnx')}.{cache}.onnx"


def wrong_streams(part: Part, target: Part) -> str:
    """What is wrong with the streams of a part; empty where nothing is."""
    if (part.kind == "streaming decoder") != bool(part.streams):
        return f"has {part.streams} streams, and a streaming decoder alone has some"
    if part.streams and (part.taps or part.adapters):
        return "gives taps or has adapters, as a streaming decoder does not"
    if part.streams and part.vocab - part.streams < target.vocab:
        return (
            f"knows {part.vocab - part.streams} tokens beside its streams where the target has {target.vocab}"
        )
    return ""


def wrong_extras(part: Part, target: Part, files: Collection[str]) -> str:
    """What is wrong with the streams of a part, or with its static graphs; empty where nothing is. files: all."""
    return wrong_streams(part, target) or _wrong_buckets(part, files)


def _wrong_buckets(part: Part, files: Collection[str]) -> str:
    if (sizes := part.static) is None:
        return ""
    if part.kind not in ("decoder", "streaming decoder") or part.adapters or part.rope is not None:
        return "has static graphs, as only a decoder without adapters and with fixed rotary frequencies may"
    if wrong := sizes.wrong():
        return wrong
    if lacking := [path for name in sizes.names() if (path := part.beside(name)) not in files]:
        return f"has a static graph, {lacking[0]!r}, that is not among the files of the bundle"
    if lacking := [path for path in part.stores if path not in files]:
        return f"has static graphs over weights in {lacking[0]!r}, which is not among the files of the bundle"
    return ""


def made_of(target: Part, **changes: Any) -> Part:
    """A part over the weights of a target's own graph: of the target's other graphs, halves and static ones, it has
    none."""
    return replace(target, **{"split": None, "static": None, **changes})


def first_layers(target: Part, exits: Part, layer: int) -> Part:
    """The target up to a layer, as a skip of all behind it: it says logits, and the hidden states behind that layer.

    exits: the part that has a graph of it.
    """
    left = [f"{half}.{number}" for number in range(layer + 1, target.layers) for half in ("attention", "mlp")]
    return made_of(
        target,
        graph=exits.exits[layer],
        taps=[f"hidden.{layer}"],
        caches={form: exits.exit_for(layer, form) for form in target.caches},
        parameters=max(round(target.parameters * exits.costs.get(layer, 1.0)), 1),
        kind="skip",
        without=left,
    )


def tree_shape(name: str) -> tuple[int, int]:
    """Levels, and parents a level, of a tree `DxW`."""
    depth, width = name.split("x")
    return int(depth), int(width)


def as_label(text: str) -> str:
    """What a label may hold of a text: spaces in place of what a terminal obeys, 200 characters at most."""
    return "".join(c if _LABEL.fullmatch(c) else " " for c in text)[:_LABEL_LENGTH]

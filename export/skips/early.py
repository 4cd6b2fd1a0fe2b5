"""The target's first layers, and its norm and LM head alone, as graphs over the target's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from paceline.export.caches import write_cached_graphs
from paceline.export.errors import ExportError
from paceline.export.skips.blocks import blocks_of, leave_out, prune
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import Part
from paceline.runtime.ops import packed_matmul as products
from paceline.runtime.part import SHARED

_LOOK_UPS = (products.EMBEDDING, "Gather")
"""Of their tables a pass reads a row a token."""


@dataclass(frozen=True, slots=True)
class Early:
    """Graphs up to some layers, by layer: their paths, and bytes of the weights that a pass up to there reads; those of
    the LM head, and of the whole target; bytes of the files.
    """

    graphs: Mapping[int, str]
    weights: Mapping[int, int]
    head: int
    whole: int
    bytes: int

    def costs(self, behind: int) -> dict[int, float]:
        """By layer, what a draft pass costs in passes of the target. behind: bytes of what says the tokens."""
        return {
            layer: round(min((weights + behind) / self.whole, 1.0), 4)
            for layer, weights in self.weights.items()
        }


def check_shared(target: Part, folder: Path) -> None:
    """Raise ExportError for a target whose weights no other graph can read."""
    if PurePosixPath(target.data).name != SHARED:
        raise ExportError(
            f"{folder} has its weights in {target.data}, where nothing else finds them: export again"
        )


def check_layers(layers: Sequence[int], target: Part) -> None:
    """Raise ValueError for layers that a target cannot be left after."""
    for layer in layers:
        if not 0 <= layer < target.layers - 1:
            raise ValueError(
                f"there is no leaving after layer {layer} of {target.layers}: name layers from 0 to {target.layers - 2}"
            )


def write_early(work: Path, target: Part, layers: Sequence[int]) -> Early:
    """Write the graphs up to these layers into the folder of a bundle, whose target gives a tap for each.

    They say logits, and the hidden states behind their last layer. Raises ExportError.
    """
    check_shared(target, work)
    graph = ir.load(work / target.graph)
    graphs, weights, size = dict[int, str](), dict[int, int](), 0
    for layer in sorted(layers):
        left = [f"{half}.{n}" for n in range(layer + 1, target.layers) for half in ("attention", "mlp")]
        twin = leave_out(graph, left, target.layers, taps=[f"hidden.{layer}"])
        graphs[layer] = str(PurePosixPath(target.graph).with_name(f"early.{layer}.onnx"))
        path = work / graphs[layer]
        write_atomically(path, ir.to_proto(twin).SerializeToString(), private=False)
        names = [path.name, *write_cached_graphs(twin, path).values()]
        size += sum((path.parent / name).stat().st_size for name in names)
        weights[layer] = bytes_above(output_of(twin, f"hidden.{layer}"))
    whole = bytes_above(output_of(graph, "logits"))
    blocks = blocks_of(graph, target.layers)
    return Early(graphs, weights, whole - bytes_above(blocks[-1].addition.outputs[0]), whole, size)


def shares_of_bytes(bundle: Bundle, layers: Sequence[int]) -> tuple[dict[int, float], float]:
    """Of the bytes of weights that a pass of a target reads, those up to each of these layers, and of its LM head.

    The target gives a tap for each layer. Raises ExportError for a model whose layers cannot be told apart.
    """
    target, graph = bundle.manifest.target, ir.load(bundle.path(bundle.manifest.target.graph))
    whole = bytes_above(output_of(graph, "logits"))
    blocks = blocks_of(graph, target.layers)
    shares = {layer: bytes_above(output_of(graph, f"hidden.{layer}")) / whole for layer in layers}
    return shares, 1 - bytes_above(blocks[-1].addition.outputs[0]) / whole


def write_speaker(work: Path, target: Part, path: str) -> None:
    """Write the target's norm and LM head as a graph that reads hidden states, float32[T, hidden]."""
    graph = ir.load(work / target.graph).clone()
    first = blocks_of(graph, target.layers)[0].stream
    every = [f"{half}.{n}" for n in range(target.layers) for half in ("attention", "mlp")]
    name = first.name
    twin = leave_out(graph, every, target.layers)
    stream = next(value for node in twin.graph for value in node.outputs if value.name == name)
    features = feed(twin.graph, stream, target.hidden)
    prune(twin.graph)
    kept = {value.name: value for value in twin.graph.inputs}
    twin.graph.inputs[:] = [kept["token_ids"], features, kept["rows"]]
    write_atomically(work / path, ir.to_proto(twin).SerializeToString(), private=False)


def feed(graph: ir.Graph, stream: ir.Value, hidden: int) -> ir.Value:
    """Let an input `features`, float32[T, hidden], take the place of a stream [T, hidden] or [1, T, hidden]."""
    features = ir.val("features", ir.DataType.FLOAT, ir.Shape(["T", hidden]))
    given = features
    if stream.shape is not None and len(stream.shape) == 3:
        axis = ir.val(
            "features.axis",
            ir.DataType.INT64,
            ir.Shape([1]),
            const_value=ir.tensor([0], name="features.axis"),
        )
        graph.register_initializer(axis)
        wrap = ir.node("Unsqueeze", [features, axis])
        maker = stream.producer()
        assert maker is not None
        graph.insert_before(maker, wrap)
        given = wrap.outputs[0]
        given.dtype, given.shape = ir.DataType.FLOAT, ir.Shape([1, "T", hidden])
    ir.convenience.replace_all_uses_with(stream, given)
    return features


def output_of(model: ir.Model, name: str) -> ir.Value:
    """The output of this name."""
    return next(value for value in model.graph.outputs if value.name == name)


def stream_of(model: ir.Model, tap: str) -> tuple[ir.Value, ir.Node | None]:
    """The stream that a tap shows, and the node that only shows it."""
    shown = output_of(model, tap)
    maker = shown.producer()
    if maker is not None and maker.op_type == "Squeeze" and not shown.uses():
        stream = maker.inputs[0]
        assert stream is not None
        return stream, maker
    return shown, None


def bytes_above(value: ir.Value) -> int:
    """Bytes of the weights that this value depends on."""
    weights, waiting, seen = dict[str, int](), [value], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        for given in node.inputs:
            if given is None:
                continue
            if given.const_value is None:
                waiting.append(given)
            elif node.op_type not in _LOOK_UPS:
                weights[str(given.name)] = given.const_value.nbytes
    return sum(weights.values())

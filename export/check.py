"""Checks of an export with ONNX Runtime itself: each packed matrix, then the whole graph against torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.functions import append_functions
from paceline.export.nbits import nbits_attributes, nbits_codes
from paceline.export.pack import Packed
from paceline.export.passes import nodes_per_layer
from paceline.export.products import packed_attributes
from paceline.export.quantize import BLOCKS, Quantised
from paceline.export.trial import Answers, Rows, Trial
from paceline.memory.cache import CacheFormat
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.ort import onnxruntime
from paceline.runtime.ops import library, packed_matmul, tree_attention
from paceline.runtime.ops.packed_matmul import TILE

Floats = npt.NDArray[np.float32]

# Activations are rounded to 8 bits inside MatMulNBits: a right packing was never off by more than 0.011.
_ROUNDING = 0.03
# With one scale for a whole row of activations.
_COARSE_ROUNDING = 0.05
_MATRIX = {4: 0.3, 5: 0.15, 6: 0.08, 8: 0.03}
_ROWS = 512
_PIECES = 4
_BIG = 4096
_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a graph is from torch over all rows of a trial.

    relative: largest logit difference over the largest logit. spread: root mean square of the difference
    over the standard deviation of the logits, the median of all rows. top1: share of rows with the same
    best token.
    """

    rows: int
    largest: float
    relative: float
    spread: float
    top1: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a graph may differ by."""

    relative: float
    spread: float

    def over(self, cache: CacheFormat) -> Limits:
        """The same over a narrow cache."""
        added = CACHE_LIMITS[cache]
        return Limits(self.relative + added.relative, self.spread + added.spread)


# Against torch with the very weights that are stored. A wrong packing or a wrong graph gives logits that have
# nothing to do with torch's: a spread near 1.4.
EXACT = Limits(1e-3, 1e-3)
TABLES = Limits(1e-2, 1e-2)
"""Where tables of a rounded model are narrowed to 16 bits."""
ROUNDED_ACTIVATIONS = Limits(0.5, 0.3)
"""Right ones were 0.06 off in a random model of 24 layers, 0.01 in trained ones."""
CACHE_LIMITS: dict[CacheFormat, Limits] = {"fp16": Limits(0.02, 0.02), "int8": Limits(0.3, 0.2)}
"""What a narrow cache may add: right ones were 0.0003 (fp16) and 0.01 (int8) off in small models."""


def check_rounding(name: str, error: float, bits: int, block: int, *, calibrated: bool = False) -> None:
    """Raise ExportError if rounding leaves too little of a matrix; calibration may move it further away."""
    if not error <= _MATRIX[bits] * (2 if calibrated else 1):
        raise ExportError(
            f"{name}: {bits} bits in blocks of {block} keep too little of it "
            f"(relative error {error:.3f}): export with a smaller --block or --quant none"
        )


def check_matrix(name: str, weight: Floats, quantised: Quantised, packed: Packed | None = None) -> None:
    """Multiply by a matrix as it is stored in ONNX Runtime and compare with numpy. Raises ExportError.

    The result must be that of the codes and scales up to the rounding of activations, and those must be near
    the weight itself. Of a wide matrix a few runs of columns are taken, spread over all of it. With `packed` the
    packed operator multiplies, by its function body and by the native library where there is one.
    """
    check_rounding(name, quantised.error, quantised.bits, quantised.block)
    x = np.random.default_rng(0).normal(size=(4, quantised.k)).astype(np.float32)
    rounding = _ROUNDING if quantised.block <= max(BLOCKS.values()) else _COARSE_ROUNDING
    runs = _runs(weight.shape[1])
    dense = np.concatenate([quantised.dense(*run) for run in runs])
    own = np.concatenate([weight[:, start:stop].T for start, stop in runs])
    meant, lost = x @ dense.T, _ratio(dense - own, own)
    for got in _multiply(x, quantised, packed, runs):
        off = _ratio(got - meant, meant)
        if not (off <= rounding and lost <= 2 * _MATRIX[quantised.bits]):
            raise ExportError(
                f"{name}: the packed matrix does not compute what it should (off by {off:.3f} of the "
                f"result, weights by {lost:.3f}); nothing was written"
            )


def _runs(n: int) -> list[tuple[int, int]]:
    """Columns to look at, from..to: all, or runs of whole tiles spread over all of them, up to the last."""
    if n <= _ROWS * _PIECES:
        return [(0, n)]
    starts = [at * (n - _ROWS) // (_PIECES - 1) // TILE * TILE for at in range(_PIECES)]
    return [(start, n if start == starts[-1] else start + _ROWS) for start in starts]


def _multiply(
    x: Floats, quantised: Quantised, packed: Packed | None, runs: list[tuple[int, int]]
) -> Iterator[Floats]:
    """x times these columns, once for each way in which a bundle may do it."""
    value = ir.val("x", ir.DataType.FLOAT, x.shape)
    if packed is None:
        parts = [quantised.columns(*run) for run in runs]
        columns = replace(
            quantised,
            codes=np.concatenate([part.codes for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
        )
        scales = columns.scales.astype(np.float32).reshape(-1)
        weights = [_constant("b", nbits_codes(columns)), _constant("s", scales)]
        attributes, op, domain = nbits_attributes(columns), "MatMulNBits", "com.microsoft"
    else:
        tiles = [packed.columns(*run) for run in runs]
        lines = np.concatenate([part.weights for part in tiles])
        spread = np.concatenate([part.scales for part in tiles if part.scales is not None])
        weights = [_constant("b", lines), _constant("s", spread)]
        n = sum(part.n for part in tiles)
        attributes = packed_attributes(packed.bits, packed.block, packed.k, n, exact=quantised.exact)
        op, domain = "QMatMul", packed_matmul.DOMAIN
    node = ir.node(op, [value, *weights], attributes, domain=domain)
    out = node.outputs[0]
    width = sum(stop - start for start, stop in runs)
    out.name, out.dtype, out.shape = "y", ir.DataType.FLOAT, ir.Shape([len(x), width])
    opsets = {"": 23, "com.microsoft": 1}
    graph = ir.Graph([value], [out], nodes=[node], initializers=weights, opset_imports=opsets, name="check")
    model = ir.Model(graph, ir_version=10)
    append_functions(model)
    raw = ir.to_proto(model).SerializeToString()
    for native in ways_to_run(packed is not None):
        result: Floats = _session(raw, _options(native)).run(None, {"x": x})[0]
        yield result


def ways_to_run(packed: bool) -> tuple[bool, ...]:
    """Whether our kernels run a graph: both ways where they can, the usual one last."""
    return (False, True) if packed and library.available() else (False,)


def evaluate(graph: bytes, given: dict[str, npt.NDArray[Any]]) -> list[Floats]:
    """The outputs of a graph that stands whole in these bytes, on the CPU."""
    results: list[Floats] = _session(graph, _options(native=False)).run(None, given)
    return results


def _constant(name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.val(name, tensor.dtype, array.shape, const_value=tensor)


def _ratio(difference: Floats, whole: Floats) -> float:
    size = float(np.linalg.norm(whole))
    return float(np.linalg.norm(difference)) / size if size else float(np.linalg.norm(difference))


def check_graph(
    what: str,
    folder: Path,
    part: Part,
    trial: Trial,
    answers: Answers,
    exact: str | None = None,
    reference: str = "torch",
) -> Agreement:
    """Run a trial through a written graph as the runtime does and compare with a reference. Raises ExportError.

    answers: of `reference`, torch or numpy, with the weights that the graph holds. exact: the name of the graph's twin
    that does not round activations, where it has one (see `write_exact_graph`): the twin has to agree with the
    reference, and the graph itself up to the rounding of activations. Prompt in two chunks, the tree in one pass and
    grown in two, a continuation behind the path that is kept. The exact graph runs by its function bodies and by our
    kernels, where they are; the others run as the runtime takes them here. Returns the agreement of the exact one.
    """
    ways = ways_to_run(part.layout is not None)
    limits = EXACT if exact is None else TABLES
    for native in ways:
        by = "by our kernels" if native else "by ONNX Runtime's operators"
        agreement = _run_trial(folder, part, trial, answers, native, file=exact)
        check_agreement(what, agreement, limits, by, reference)
    if exact is not None:
        limits = ROUNDED_ACTIVATIONS
        rounded = _run_trial(folder, part, trial, answers, ways[-1])
        check_agreement(what, rounded, limits, "with activations of 8 bits", reference)
    for form in part.caches:
        narrow = _run_trial(folder, part, trial, answers, ways[-1], form)
        check_agreement(what, narrow, limits.over(form), f"over a cache of {form}", reference)
    return agreement


def check_agreement(what: str, agreement: Agreement, limits: Limits, by: str, reference: str) -> None:
    """Raise ExportError for a graph that is further from its reference than it may be. by: how it was run."""
    if not (agreement.relative <= limits.relative and agreement.spread <= limits.spread):
        raise ExportError(
            f"{what}: the exported graph, run {by}, disagrees with {reference}: largest logit error "
            f"{agreement.largest:.3g} ({agreement.relative:.2g} of the largest logit, at most "
            f"{limits.relative:g}), spread {agreement.spread:.2g} (at most {limits.spread:g}), same best token "
            f"in {agreement.top1:.0%} of {agreement.rows} rows; nothing was written"
        )


def _run_trial(
    folder: Path,
    part: Part,
    trial: Trial,
    answers: Answers,
    native: bool,
    cache: CacheFormat = "fp32",
    file: str | None = None,
) -> Agreement:
    model = open_part(folder, part, trial.length, trial.length, kernels=native, cache=cache, file=file)
    model.prepare(trial.within)
    prompt, tree, grown, rest = replay(model, trial)
    pairs = [(prompt, answers.prompt), (tree, answers.tree), (grown, answers.tree), (rest, answers.rest)]
    got, meant = (np.concatenate(side) for side in zip(*pairs, strict=True))
    del model
    gc.collect()
    return compare(got, meant)


def compare(got: Rows, meant: Rows) -> Agreement:
    """Measure logits against each other, float32[R, V]; a NaN anywhere makes every figure infinite."""
    if not np.isfinite(got).all():
        return Agreement(len(got), np.inf, np.inf, np.inf, 0.0)
    difference = np.abs(got - meant)
    size = np.std(meant, axis=1)
    spread = np.sqrt(np.mean(difference**2, axis=1)) / np.where(size == 0, 1, size)
    largest, scale = float(difference.max()), float(np.abs(meant).max()) or 1.0
    same = float(np.mean(got.argmax(axis=1) == meant.argmax(axis=1)))
    return Agreement(len(got), largest, largest / scale, float(np.median(spread)), same)


def open_part(
    folder: Path,
    part: Part,
    context: int,
    widest: int,
    *,
    kernels: bool = True,
    cache: CacheFormat = "fp32",
    file: str | None = None,
    threads: int = 0,
) -> Model:
    """Open a part of a bundle (whose folder is given) on the CPU, as the runtime does. file: another graph of it."""
    path = folder / part.graph_for(cache)
    if file is not None:
        path = path.with_name(file)
    graph = Graph(path, find_device("cpu"), threads=threads, part=part, kernels=kernels)
    return Model(graph, part, context=context, widest=widest, chunk=widest, scratch=widest, cache=cache)


def replay(model: Model, trial: Trial) -> tuple[Rows, Rows, Rows, Rows]:
    """A model's logits for a trial: its prompt in two chunks, the tree at once and in two levels, the rest."""
    n, grown = len(trial.prompt), trial.grown
    half = n // 2
    prompt = np.concatenate([_chain(model, trial.prompt[:half]), _chain(model, trial.prompt[half:])])
    depths = [len(trial.branch(i)) - 1 for i in range(len(trial.tree))]
    positions = [n + d for d in depths]
    mask = _ancestors(trial.parents)
    tree = model.grow(trial.tree, positions, mask, 0).copy()
    first = model.grow(trial.tree[:grown], positions[:grown], mask[:grown, :grown], 0).copy()
    second = model.grow(trial.tree[grown:], positions[grown:], mask[grown:], grown).copy()
    model.adopt(trial.path, [trial.tree[i] for i in trial.path])
    return prompt, tree, np.concatenate([first, second]), _chain(model, trial.rest)


def _chain(model: Model, tokens: Sequence[int]) -> Rows:
    """Run and commit tokens; logits of every one, float32[T, V]."""
    positions = range(model.length, model.length + len(tokens))
    rows = model.grow(tokens, positions, np.tri(len(tokens), dtype=np.bool_), 0).copy()
    model.adopt(range(len(tokens)), tokens)
    return rows


def _ancestors(parents: Sequence[int]) -> npt.NDArray[np.bool_]:
    mask = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def part_logits(
    folder: Path, part: Part, context: int, cache: CacheFormat = "fp32", threads: int = 0
) -> Callable[[Sequence[int]], Rows]:
    """What a written part answers to a text of at most `context` tokens, float32[T, V], from an empty cache."""
    model = open_part(folder, part, context, _WIDTH, cache=cache, threads=threads)

    def logits_of(tokens: Sequence[int]) -> Rows:
        model.rewind(0)
        model.prepare(len(tokens))
        return np.concatenate(
            [_chain(model, tokens[at : at + _WIDTH]) for at in range(0, len(tokens), _WIDTH)]
        )

    return logits_of


def count_nodes(model: ir.Model, layers: int) -> float:
    """Nodes a layer runs after ONNX Runtime optimised the graph.

    Weights become inputs of a twin of the graph, so that optimising and saving it costs next to nothing; ORT
    then runs it through the same rewrites, for none of them reads a large weight. Packed operators count as the
    kernels that they are; without the library ORT would inline them, so then the graph is counted as it stands.
    """
    packed = any(
        node.domain == packed_matmul.DOMAIN and node.op_type != tree_attention.NAME for node in model.graph
    )
    if packed and not library.available():
        return nodes_per_layer(model.graph, layers)
    twin = model.clone()
    graph = twin.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size >= _BIG:
            del graph.initializers[name]
            _feed(graph, value)
        elif tensor is not None:
            value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)
    with TemporaryDirectory() as folder:
        saved = str(Path(folder) / "optimised.onnx")
        options = _options(packed)
        options.optimized_model_filepath = saved
        _session(ir.to_proto(twin).SerializeToString(), options)
        return nodes_per_layer(ir.load(saved).graph, layers)


def _feed(graph: ir.Graph, value: ir.Value) -> None:
    """Make a weight an input; a Cast behind it, which ORT folds for a constant, is taken as done."""
    casts = [u.node for u in value.uses() if u.node.op_type in ("Cast", "Transpose")]
    if not casts or len(casts) < len(value.uses()):
        fed = ir.val(f"{value.name}", value.dtype, value.shape)
        value.replace_all_uses_with(fed)
        graph.inputs.append(fed)
        casts = [u.node for u in fed.uses() if u.node.op_type in ("Cast", "Transpose")]
    for cast in casts:
        _feed(graph, cast.outputs[0])
        graph.remove(cast, safe=True)


def _options(native: bool) -> Any:
    options = onnxruntime().SessionOptions()
    if native:
        library.register(options)
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(model: bytes, options: Any) -> Any:
    return onnxruntime().InferenceSession(
        model, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )

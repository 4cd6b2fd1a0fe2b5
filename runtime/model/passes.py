"""The passes of a graph: arrays of every shape, bound to it once and filled each time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array, Logits
from paceline.runtime.manifest import Part
from paceline.runtime.model.contract import ODDS
from paceline.runtime.model.first_half import FirstHalf, InTurn, Runs
from paceline.runtime.model.graph import Graph, RunError
from paceline.runtime.model.values import DeviceValue

_MOST_BINDINGS = 48
Mask = npt.NDArray[np.bool_]


class Bound:
    """A graph with contiguous arrays of exact shapes, bound for good: fill the inputs, run, read the outputs.

    Where the device sees the arrays nothing is copied. Else each run copies what is fed, into memory that both see
    where there is such, but for inputs that lie there already: OrtValues, and DeviceValues. Outputs arrive in their
    arrays everywhere, or stay on the device. Raises BundleError where the graph does not take them.
    """

    def __init__(
        self, graph: Graph, inputs: Mapping[str, Any], outputs: Mapping[str, Array | DeviceValue]
    ) -> None:
        self._graph = graph
        self._binding: Any = None
        for name, array in (*inputs.items(), *outputs.items()):
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                raise ValueError(f"{name} is not contiguous: ONNX Runtime would silently copy it")
        self._kept: list[Any] = []
        self._copied: list[tuple[Array, Array]] = []
        self._fed: dict[str, Array] = {}
        self._past, self._full = inputs.get("past_len"), not graph.device.runs.empty
        self._empty = [
            name for name, given in inputs.items() if isinstance(given, np.ndarray) and not given.size
        ]
        try:
            with graph.turn:
                self._binding = graph.session.io_binding()
                for name, given in inputs.items():
                    self._bind_input(name, given)
                for name, made in outputs.items():
                    self._kept.append(made if isinstance(made, DeviceValue) else graph.value(made))
                    self._binding.bind_ortvalue_output(name, _value(self._kept[-1]))
        except Exception as error:
            raise graph.refused(error) from None

    def _bind_input(self, name: str, given: Any) -> None:
        value = given
        if isinstance(given, np.ndarray):
            if self._graph.sees(name):
                value = self._graph.value(given)
            elif self._graph.shares_memory:
                value = self._graph.shown(given.shape, given.dtype)
                self._copied.append((value.numpy(), given))
            else:
                self._fed[name] = given
                return
        self._kept.append(value)
        self._binding.bind_ortvalue_input(name, _value(value))

    def __del__(self) -> None:
        if (graph := getattr(self, "_graph", None)) is not None:  # it may have been ended while it was made
            with graph.turn:  # values on a device may go with it
                self._binding = None

    def run(self, shrink: bool = False) -> None:
        """One pass over the bound arrays. Raises BundleError where it fails.

        shrink: on the CPU, give temporaries that are free after it back to the system.
        """
        graph = self._graph
        if self._full:
            self._check_full()
        try:
            with graph.turn:
                for held, given in self._copied:
                    np.copyto(held, given)
                for name, given in self._fed.items():
                    self._binding.bind_cpu_input(name, given)
                options = graph.shrinking() if shrink and graph.on_cpu else None
                graph.session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise graph.refused(error) from None

    def _check_full(self) -> None:
        """Tensors without elements would end the process."""
        if self._empty or (self._past is not None and not self._past[0]):
            raise RunError(
                f"{self._graph.path} was given an empty {self._empty[0] if self._empty else 'cache'}, which "
                f"{self._graph.device.name} does not take: run this part on the CPU",
                away=True,
            )


def _value(held: Any) -> Any:
    return held.value if isinstance(held, DeviceValue) else held


@dataclass(frozen=True, slots=True)
class Ran:
    """What a pass of T rows gave: logits or states of R of them, new keys and values, taps.

    new: an array float32[2 * layers, kv_heads, T, head_dim], or where the cache lies on a device NewRows.
    """

    token_ids: npt.NDArray[np.int64]
    logits: Logits
    odds: Logits
    new: Any
    extras: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Pass(Ran):
    """The arrays of one shape (T new rows, W mask columns, R rows of logits, or states), bound to the graph."""

    bound: Runs
    positions: npt.NDArray[np.int64]
    tree_mask: Mask
    past_len: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    features: Array


class Buffers:
    """What the passes of a part write to; `widest` is the most rows of any pass that asks for logits, `chunk` of any
    other. reserved: all of it is resident at once. kept: new rows stay on the device.
    """

    def __init__(self, part: Part, widest: int, chunk: int, reserved: bool, kept: bool = False) -> None:
        self.count = 0
        """How many passes there were."""
        self._part, self._reserved = part, reserved
        most = max(widest, chunk)
        self._row = 0 if kept else 2 * part.layers * part.kv_heads * part.head_dim
        numbers = self._row * most
        self._new = np.zeros(numbers, np.float32) if part.without else np.empty(numbers, np.float32)
        self._output, self._columns = part.output
        self._logits = np.empty(widest * self._columns, np.float32)
        self._odds = np.zeros(widest, np.float32)
        self._taps = {tap: np.zeros(most * part.hidden, np.float32) for tap in part.taps}
        if reserved:
            self._new.fill(0)
            self._logits.fill(0)

    @property
    def bytes(self) -> int:
        """Bytes of the buffers that a pass writes its logits and new rows to."""
        return self._logits.nbytes + self._new.nbytes

    @property
    def no_logits(self) -> Logits:
        """float32[0, V], or as many columns as a state has."""
        return self._logits[:0].reshape(0, self._columns)

    def resize(self, widest: int) -> None:
        """Room for logits of so many rows from now on; what was kept for wider ones goes back to the system."""
        if widest * self._columns != len(self._logits):
            self._logits = self._logits[:0].copy()  # first the one goes, then the other comes
            self._logits = np.empty(widest * self._columns, np.float32)
            self._odds = np.zeros(widest, np.float32)
            if self._reserved:
                self._logits.fill(0)

    def close(self) -> None:
        """Give all memory back; nothing can run again."""
        self._new, self._logits = self._new[:0].copy(), self._logits[:0].copy()
        self._taps = {}

    def _outputs(self, n: int, want: int) -> tuple[Logits, Logits, npt.NDArray[np.float32], dict[str, Array]]:
        """Logits, odds, new rows and taps of a pass of `n` rows, of which `want` are asked for."""
        part = self._part
        planes = (2 * part.layers, part.kv_heads, n if self._row else 0, part.head_dim)
        logits = self._logits[: want * self._columns].reshape(want, self._columns)
        taps: dict[str, Array] = {
            tap: buffer[: n * part.hidden].reshape(n, part.hidden) for tap, buffer in self._taps.items()
        }
        return (
            logits,
            self._odds[:want].reshape(want, 1),
            self._new[: int(np.prod(planes))].reshape(planes),
            taps,
        )


class Passes(Buffers):
    """Runs a graph. Passes of all shapes share the memory of their inputs, and that of their outputs.

    fixed: inputs that every pass has. A mask may have `scratch` columns more than `widest`. first: runs before the
    graph, which is then the rest of the part. The others as of Buffers.
    """

    def __init__(
        self,
        graph: Graph,
        part: Part,
        fixed: Mapping[str, Any],
        widest: int,
        chunk: int,
        scratch: int,
        reserved: bool,
        first: FirstHalf | None = None,
    ) -> None:
        super().__init__(part, widest, chunk, reserved)
        self._graph, self._fixed, self._first = graph, dict(fixed), first
        self._shrink = False
        self._bound: OrderedDict[tuple[int, int, int], Pass] = OrderedDict()
        most = max(widest, chunk)
        self._empty = graph.device.runs.empty
        """Whether the device takes tensors without elements."""
        self._features = np.zeros(most * (part.features or 0), np.float32)
        self._ids = np.zeros((2, most), np.int64)
        more = 0 if self._empty else 1
        self._mask = np.zeros(max(chunk * (chunk + more), widest * (widest + scratch + more)), np.bool_)
        self._past = np.zeros(1, np.int64)

    def resize(self, widest: int) -> None:
        """Room for logits of so many rows from now on; what was kept for wider ones goes back to the system."""
        self._bound.clear()
        self._shrink = True
        super().resize(widest)

    def close(self) -> None:
        """Give all memory back; nothing can run again."""
        self._bound.clear()
        super().close()
        self._mask = self._mask[:0].copy()

    def run(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int64],
        positions: Array | int,
        mask: Mask,
        past: int,
        want: int,
        features: Array | None = None,
    ) -> Pass:
        """One pass; `want` is 0 (no logits), 1 (the last row's) or T (every row's)."""
        if not self._empty:
            mask, past, want = _without_empty(mask, past, want)
        key = (len(tokens), mask.shape[1], want)
        found = self._bound.get(key)
        if found is None:
            found = self._bind(*key)
        else:
            self._bound.move_to_end(key)
        found.token_ids[:] = tokens
        found.positions[:] = positions
        found.tree_mask[:] = mask
        found.past_len[0] = past
        if features is not None:
            found.features[:] = features
        found.bound.run(self._shrink)
        self._shrink = False
        self.count += 1
        return found

    def _bind(self, n: int, width: int, want: int) -> Pass:
        part = self._part
        logits, odds, new, extras = self._outputs(n, want)
        outputs: dict[str, Array] = {self._output: logits, **extras}
        if part.predictor is not None:
            outputs[ODDS] = odds
        for i in part.attending:
            outputs[f"new_k.{i}"] = new[i]
            outputs[f"new_v.{i}"] = new[part.layers + i]
        columns = part.features or 0
        inputs: dict[str, Any] = {
            "token_ids": self._ids[0, :n],
            "positions": self._ids[1, :n],
            "tree_mask": self._mask[: n * width].reshape(n, width),
            "past_len": self._past,
            "rows": np.arange(n - want, n, dtype=np.int64),
        }
        features = self._features[: n * columns].reshape(n, columns)
        if self._first is not None:
            features = extras[self._first.tap]
        fed = {**inputs, "features": features, **self._fixed}
        bound: Runs = _bound(self._graph, fed, outputs)
        if self._first is not None:
            early = self._first.room(want)
            bound = InTurn(_bound(self._first.graph, fed, outputs | early), bound, early, self._first.hear)
        given: dict[str, Any] = {"bound": bound, "features": features, **inputs}
        made = Pass(logits=logits, odds=odds, new=new, extras=extras, **given)
        self._bound[n, width, want] = made
        if len(self._bound) > _MOST_BINDINGS:
            self._bound.popitem(last=False)
        return made


def _bound(graph: Graph, given: Mapping[str, Any], outputs: Mapping[str, Array]) -> Bound:
    """With what it knows of these: without a cache it knows no places, and one of two gives a part of the outputs."""
    return Bound(
        graph,
        {name: array for name, array in given.items() if name in graph.inputs},
        {name: array for name, array in outputs.items() if name in graph.outputs},
    )


def _without_empty(mask: Mask, past: int, want: int) -> tuple[Mask, int, int]:
    """The same pass without a tensor that has no elements: one more row of the cache, which nobody sees, and logits of
    one row, which nobody reads."""
    if not past:
        mask, past = np.concatenate([np.zeros((len(mask), 1), np.bool_), mask], axis=1), 1
    return mask, past, max(want, 1)


def rotary_inputs(part: Part) -> dict[str, npt.NDArray[np.float32]]:
    """Arrays for the frequencies that a graph takes as inputs, where it does."""
    if part.rope is None:
        return {}
    return {"inv_freq": np.empty(part.rope.dim // 2, np.float32), "rope_scale": np.empty(1, np.float32)}


@lru_cache(1)
def _largest_triangle(n: int) -> Mask:
    mask = np.tri(n, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


def lower_triangle(n: int) -> Mask:
    """The mask of a chain, a view of the one that all share."""
    return _largest_triangle(max(256, n))[:n, :n]


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Chunks behind one another; copies, for the next pass overwrites what it gave."""
    return {tap: np.concatenate([part[tap] for part in parts]) for tap in (parts[0] if parts else ())}

"""Keys and values that stay in the memory of their device: what a pass made is moved into them there, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.memory.cache import CacheFormat, Floats
from paceline.runtime.manifest import Part
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.small_graph import node, small_graph, value, whole
from paceline.runtime.model.values import DeviceValue

KINDS: dict[CacheFormat, type[Any]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows on the device that a cache can take over.

    planes: of keys and values of every layer, [kv_heads, T, head_dim], of which the rows from `first` on count, so many
    as `shape` [2 * layers, kv_heads, rows, head_dim] says.
    """

    planes: Sequence[DeviceValue]
    shape: tuple[int, int, int, int]
    first: int = 0

    def part(self, rows: int) -> NewRows:
        """The first rows alone."""
        layers, heads, _, width = self.shape
        return replace(self, shape=(layers, heads, rows, width))

    def outputs(self) -> dict[str, DeviceValue]:
        """The planes by the names of the graph contract."""
        layers = len(self.planes) // 2
        return {f"new_{'kv'[i // layers]}.{i % layers}": plane for i, plane in enumerate(self.planes)}


class DeviceRows:
    """Keys and values of every layer as values on the device of a graph, whose runs are bound to them.

    Its memory is taken at once, and given back when nothing is bound to it any more.
    """

    def __init__(self, graph: Graph, part: Part, capacity: int, form: CacheFormat) -> None:
        self.capacity, self.form = capacity, form
        self._graph, self._kind = graph, np.dtype(KINDS[form])
        self._shape = (2 * part.layers, part.kv_heads, capacity, part.head_dim)
        self._session: Any = None
        self._planes = self.fresh(capacity).planes
        raw = _moving(*self._shape[:2], part.head_dim, self._kind)
        self._session = graph.beside(raw, "the rows of the cache")

    def __del__(self) -> None:
        with self._graph.turn:
            self._session = None

    def fresh(self, rows: int) -> NewRows:
        """Room for so many new rows, for graphs to write to."""
        planes, heads, _, width = self._shape
        made = [self._graph.kept((heads, rows, width), self._kind) for _ in range(planes)]
        return NewRows(made, (planes, heads, rows, width))

    def lying(self, at: int, rows: int) -> NewRows:
        """Rows that lie in this cache, from row `at` on."""
        return replace(self.read(), first=at).part(rows)

    @property
    def bytes(self) -> int:
        """Bytes that it takes on the device."""
        return int(np.prod(self._shape)) * self._kind.itemsize

    def inputs(self) -> dict[str, DeviceValue]:
        """The values by the names of the graph contract."""
        return {name.replace("new", "cache"): plane for name, plane in self.read().outputs().items()}

    def read(self) -> NewRows:
        """All of its rows."""
        return NewRows(self._planes, self._shape)

    def write(self, at: int, new: Floats | NewRows, rows: Sequence[int] | slice) -> None:
        """Take the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] into the cache, from row `at` on.

        Of an array they are rounded to the form of the cache and copied to the device.
        """
        chosen = np.arange(new.shape[2], dtype=np.int32)[rows if isinstance(rows, slice) else list(rows)]
        end = at + len(chosen)
        if end > self.capacity:
            raise ValueError(f"cache row {end} is beyond the capacity of {self.capacity}")
        if isinstance(new, NewRows):
            if len(chosen):
                self._move(chosen + np.int32(new.first), at, new.planes)
        elif len(chosen):
            with np.errstate(over="ignore"):  # beyond 65504 it is infinity, as everywhere
                rounded = new[:, :, chosen].astype(self._kind)
            self._move(np.arange(len(chosen), dtype=np.int32), at, rounded)

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""
        self.write(at, self.read(), rows)

    def _move(
        self, chosen: npt.NDArray[np.int32], at: int, source: Sequence[DeviceValue] | npt.NDArray[Any]
    ) -> None:
        """All of the chosen rows are read before any is written: the source may be the cache itself."""
        heads, graph, to = self._shape[1], self._graph, np.arange(at, at + len(chosen))
        if source is self._planes and np.array_equal(chosen, to):
            return
        places = np.empty((heads, len(chosen), 2), np.int64)
        places[..., 0], places[..., 1] = np.arange(heads)[:, None], to
        try:
            with graph.turn:
                binding = self._session.io_binding()
                binding.bind_cpu_input("chosen", chosen)
                binding.bind_cpu_input("places", places)
                for i, (plane, made) in enumerate(zip(self._planes, source, strict=True)):
                    binding.bind_ortvalue_input(f"cache.{i}", plane.value)
                    binding.bind_ortvalue_output(f"kept.{i}", plane.value)
                    if isinstance(made, DeviceValue):
                        binding.bind_ortvalue_input(f"new.{i}", made.value)
                    else:
                        binding.bind_cpu_input(f"new.{i}", made)
                self._session.run_with_iobinding(binding)
                del binding
        except Exception as error:
            raise graph.refused(error) from None

    def touch(self) -> None:
        """It is there already."""

    def release(self) -> None:
        """Nothing: the memory is the device's as long as its graph is bound to it."""


def _moving(planes: int, heads: int, width: int, kind: np.dtype[Any]) -> bytes:
    """Every plane's `new` rows `chosen`, put at `places` (head and row) of its `cache`; in place if bound so."""
    nodes, outputs = list[bytes](), list[bytes]()
    inputs = [value("chosen", np.int32, ("N",)), value("places", np.int64, (heads, "N", 2))]
    for i in range(planes):
        nodes += [
            node("Gather", (f"new.{i}", "chosen"), f"rows.{i}", whole("axis", 1)),
            node("ScatterND", (f"cache.{i}", "places", f"rows.{i}"), f"kept.{i}"),
        ]
        inputs += [
            value(f"cache.{i}", kind, (heads, "S", width)),
            value(f"new.{i}", kind, (heads, "T", width)),
        ]
        outputs.append(value(f"kept.{i}", kind, (heads, "S", width)))
    return small_graph("rows", nodes, inputs, outputs)

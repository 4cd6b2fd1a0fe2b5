"""Where a model keeps its keys and values: in this process, or in memory that its device reads in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.memory.cache import CacheFormat, KeyValueCache, as_codes
from paceline.runtime.manifest import Part
from paceline.runtime.model.device_rows import KINDS, DeviceRows
from paceline.runtime.model.graph import Graph
from paceline.runtime.ops.halves import halves

Floats = npt.NDArray[np.float32]


def rows_for(
    graph: Graph, part: Part, capacity: int, form: CacheFormat
) -> KeyValueCache | SharedRows | DeviceRows:
    """A cache of so many rows for a graph: shared with its device where both see one memory, on the device where rows
    can be moved in place there, else the process's own.
    """
    if graph.shares_memory and part.layers:
        return SharedRows(graph, part, capacity, form)
    if graph.device.runs.keeps and part.layers and form != "int8":
        return DeviceRows(graph, part, capacity, form)
    return KeyValueCache(part.layers, part.kv_heads, capacity, part.head_dim, form, halves())


class SharedRows:
    """Keys and values of every layer, each a value of ONNX Runtime in memory that this process and a device both see.

    What is written is seen by the next pass, and no pass copies the cache. The memory is resident from the start.
    """

    def __init__(self, graph: Graph, part: Part, capacity: int, form: CacheFormat) -> None:
        self.capacity, self.form = capacity, form
        self._values: dict[str, Any] = {}
        shape = (part.kv_heads, capacity, part.head_dim)
        names = [f"{kind}.{i}" for kind in ("k", "v") for i in range(part.layers)]
        self._planes = [self._made(graph, f"cache_{name}", shape, KINDS[form]) for name in names]
        self._scales = [
            self._made(graph, f"{name[0]}_scales{name[1:]}", shape[:2], np.float32)
            for name in names
            if form == "int8"
        ]

    def _made(self, graph: Graph, name: str, shape: tuple[int, ...], kind: type[Any]) -> npt.NDArray[Any]:
        value = self._values[name] = graph.shown(shape, kind)
        array: npt.NDArray[Any] = value.numpy()
        array.fill(0)
        return array

    @property
    def bytes(self) -> int:
        """Bytes that are reserved."""
        return sum(held.nbytes for held in (*self._planes, *self._scales))

    def inputs(self) -> dict[str, Any]:
        """The values by the names of the graph contract."""
        return dict(self._values)

    def read(self) -> Floats:
        """All rows, [2 * layers, kv_heads, capacity, head_dim], as numbers of the form it has."""
        return np.stack(self._planes)

    def write(self, at: int, new: Floats, rows: Sequence[int] | slice) -> None:
        """Round the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] into the cache, from row `at` on."""
        chosen = new[:, :, rows if isinstance(rows, slice) else list(rows)]
        end = at + chosen.shape[2]
        if end > self.capacity:
            raise ValueError(f"cache row {end} is beyond the capacity of {self.capacity}")
        with np.errstate(over="ignore"):  # beyond 65504 it is infinity, as everywhere
            for number, (plane, made) in enumerate(zip(self._planes, chosen, strict=True)):
                if self._scales:
                    plane[:, at:end], self._scales[number][:, at:end] = as_codes(made)
                else:
                    plane[:, at:end] = made

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""
        if list(rows) == list(range(at, at + len(rows))):
            return
        for held in (*self._planes, *self._scales):
            held[:, at : at + len(rows)] = held[:, list(rows)]

    def touch(self) -> None:
        """It is resident already."""

    def release(self) -> None:
        """Nothing: the memory is the device's as long as its graph is bound to it."""

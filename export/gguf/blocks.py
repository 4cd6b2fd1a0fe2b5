"""The blocks of a GGUF file for the matrices of a graph, found by what they hold: nothing is rounded a second time.

A graph has its matrices fused, turned and permuted, but a column of it is still a row of some tensor. So the rows of
all tensors are known by a digest of their values, and a column is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.quants import Q4_K

from paceline.export.gguf.reader import Bytes, Floats, Gguf, Stored
from paceline.export.quantize import Quantised
from paceline.runtime.ops.packed_matmul import zero_point

_DIGEST = 16
_CHUNK = 1 << 20
_Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
_ONE, _NONE = (0x00, 0x3C), (0, 0)
_UNIT_SCALES = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)


@dataclass(frozen=True, slots=True)
class _Format:
    """bits, block and minima as in Quantised. bytes_: of a block of the file. unit: its scales where all are 1."""

    bits: int
    block: int
    minima: bool
    bytes_: int
    unit: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What all columns of one matrix share."""
        return self.bits, self.block, self.minima


_FORMATS = {
    "Q4_0": _Format(4, 32, False, 18, ((0, _ONE),)),
    "Q4_1": _Format(4, 32, True, 20, ((0, _ONE + _NONE),)),
    "Q5_0": _Format(5, 32, False, 22, ((0, _ONE),)),
    "Q5_1": _Format(5, 32, True, 24, ((0, _ONE + _NONE),)),
    "Q8_0": _Format(8, 32, False, 34, ((0, _ONE),)),
    "Q4_K": _Format(4, 32, True, 144, ((0, _ONE + _NONE + _UNIT_SCALES),)),
    "Q5_K": _Format(5, 32, True, 176, ((0, _ONE + _NONE + _UNIT_SCALES),)),
    "Q6_K": _Format(6, 16, False, 210, ((192, (1,) * 16 + _ONE),)),
}


class Blocks:
    """The blocks of one file. notes: matrices that have none, and why. largest: difference to gguf's own values."""

    def __init__(self, file: Gguf) -> None:
        self.notes: list[str] = []
        self.largest = 0.0
        self._tensors = [t for t in file.tensors.values() if len(t.shape) == 2]
        self._places: dict[bytes, tuple[int, int]] = {}
        for number, tensor in enumerate(self._tensors):
            for first, rows in _runs(tensor):
                for row, values in enumerate(rows, first):
                    self._places.setdefault(_digest(values), (number, row))

    def choose(self, name: str, values: Floats) -> Quantised | None:
        """The blocks of a matrix float32[K, N] of the graph, None where it stays in floats."""
        places = self._columns(values)
        if places is None:
            self.notes.append(f"{name} is no matrix of the file: its weights stay floats")
            return None
        numbers, rows = places
        kinds = {self._tensors[i].kind for i in np.unique(numbers[numbers >= 0])}
        if not kinds & _FORMATS.keys():
            if kinds - {"F32", "F16", "BF16"}:
                self.notes.append(f"{name} is in {', '.join(sorted(kinds))}: its weights stay floats")
            return None
        formats = {_FORMATS[kind].kind if kind in _FORMATS else None for kind in kinds}
        if len(formats) > 1:
            self.notes.append(
                f"{name} is in several formats ({', '.join(sorted(kinds))}): its weights stay floats"
            )
            return None
        return self._gather(name, values, numbers, rows, _FORMATS[min(kinds)])

    def _columns(self, values: Floats) -> _Places | None:
        """Tensor and row of every column, -1 for columns of zeros; None where one is unknown."""
        k, n = values.shape
        numbers, rows = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        step = max(1, _CHUNK // k)
        for start in range(0, n, step):
            part = np.ascontiguousarray(values[:, start : start + step].T)
            for column, row in enumerate(part, start):
                if (place := self._places.get(_digest(row))) is not None:
                    numbers[column], rows[column] = place
                elif row.any():
                    return None
        return numbers, rows

    def _gather(
        self, name: str, values: Floats, numbers: npt.NDArray[Any], rows: npt.NDArray[Any], form: _Format
    ) -> Quantised | None:
        k, n = values.shape
        codes = np.full((n, k), 0 if form.minima else zero_point(form.bits), np.uint8)
        scales = np.zeros((n, k // form.block), np.float16)
        minima = np.zeros_like(scales) if form.minima else None
        for number in np.unique(numbers[numbers >= 0]):
            tensor, columns = self._tensors[number], np.flatnonzero(numbers == number)
            step = max(1, _CHUNK // k)
            for start in range(0, len(columns), step):
                some = columns[start : start + step]
                raw = np.ascontiguousarray(tensor.data[rows[some]])
                codes[some], wide, lowest = _read(tensor, raw)
                with np.errstate(over="ignore"):
                    scales[some] = wide
                    if minima is not None:
                        minima[some] = lowest
        made = Quantised(codes, scales, minima, form.bits, form.block, k, 0.0)
        if not (np.isfinite(scales).all() and (minima is None or np.isfinite(minima).all())):
            self.notes.append(f"{name} has scales too large for half precision: its weights stay floats")
            return None
        return self._compared(values, made)

    def _compared(self, values: Floats, made: Quantised) -> Quantised:
        """The matrix with its error: what half precision costs products of scales.

        Small ones cost nothing: they are whole multiples of the smallest number that half precision has.
        """
        lost = total = largest = 0.0
        step = max(1, _CHUNK // made.k)
        for start in range(0, made.n, step):
            meant = values[:, start : start + step].T
            off = np.abs(made.dense(start, min(made.n, start + step)) - meant)
            lost += float(np.vdot(off, off))
            total += float(np.vdot(meant, meant))
            largest = max(largest, float(off.max()))
        self.largest = max(self.largest, largest)
        return replace(made, error=float(np.sqrt(lost / total)) if total else 0.0)


def _digest(row: Floats) -> bytes:
    return blake2b(row.data, digest_size=_DIGEST).digest()


def _runs(tensor: Stored) -> Iterator[tuple[int, Floats]]:
    """The values of a tensor, some rows at a time."""
    step = max(1, _CHUNK // tensor.shape[1])
    for first in range(0, tensor.shape[0], step):
        yield first, np.ascontiguousarray(tensor.values(first, first + step))


def _read(tensor: Stored, raw: Bytes) -> tuple[Bytes, Floats, Floats]:
    """Codes uint8[rows, K], scales and minima float32[rows, blocks] of rows of a file.

    The codes are what gguf makes of the rows with all scales 1 and all minima 0.
    """
    form = _FORMATS[tensor.kind]
    plain = raw.reshape(-1, form.bytes_).copy()
    for at, content in form.unit:
        plain[:, at : at + len(content)] = content
    row = Stored(tensor.name, (len(raw), tensor.shape[1]), tensor.kind, plain.reshape(raw.shape))
    codes = (row.values() + np.float32(0 if form.minima else zero_point(form.bits))).astype(np.uint8)
    scales, minima = _scales(tensor.kind, raw.reshape(-1, form.bytes_))
    return codes.reshape(len(raw), -1), scales.reshape(len(raw), -1), minima.reshape(len(raw), -1)


def _scales(kind: str, blocks: Bytes) -> tuple[Floats, Floats]:
    """float32[file blocks, blocks in each] both; minima are empty where the format has none."""

    def half(at: int) -> Floats:
        return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)

    none = np.zeros((len(blocks), 0), np.float32)
    if kind == "Q6_K":
        return half(208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32), none
    if kind in ("Q4_K", "Q5_K"):
        scales, minima = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
        return half(0) * scales.astype(np.float32), -half(2) * minima.astype(np.float32)
    return half(0), half(2) if _FORMATS[kind].minima else none

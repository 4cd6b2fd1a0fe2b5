"""Rows that a draft makes on its way: the layer over all drafted so far, for only committed rows stand in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from paceline.export.heads.layer import Past, angles, attended, entered, finished
from paceline.export.heads.writer import INTEGER, HeadWriter


class DraftedRows:
    """Runs the layer over `width` rows a step, which attend to the cache and to what they may see of each other.

    offsets: how many places behind the text the rows of all steps stand.
    """

    def __init__(self, w: HeadWriter, past: Past, offsets: Sequence[int], width: int) -> None:
        self._w, self._past, self._rows, self._width = w, past, len(offsets), width
        self._pairs: list[ir.Value] = []
        if offsets:
            places = w.constant(f"offsets.{width}", np.array(offsets, np.int64))
            self._positions = w.node("Add", [past.length, places], (self._rows,), dtype=INTEGER)
            self._turn = angles(w, self._positions, self._rows)

    def states(self, embedded: Callable[[], ir.Value], given: ir.Value, mask: ir.Value) -> ir.Value:
        """[width, H] of the next step: embedded tokens, each beside the state that it came with, both [width, H].

        mask: which of the rows so far, its own too, each of them sees.
        """
        w, c, width = self._w, self._w.config, self._width
        given, pair = entered(w, embedded, given)
        self._pairs.append(pair)
        rows = len(self._pairs) * width
        turn = self._upto(self._turn[0], rows, 1), self._upto(self._turn[1], rows, 1)
        positions = self._upto(self._positions, rows, 0)
        seen = attended(w, w.joined(self._pairs, 1), turn, self._past, mask, positions)[0]
        last = w.whole(f"row.{rows}", *range(rows - width, rows))
        seen = w.node("Gather", [seen, last], (1, width, c.heads * c.head_dim), {"axis": 1})
        seen = w.node("Squeeze", [seen, w.whole("zero", 0)], (width, c.heads * c.head_dim))
        return finished(w, seen, given)

    def _upto(self, x: ir.Value, rows: int, axis: int) -> ir.Value:
        """The first rows of a value that has all."""
        if rows == self._rows:
            return x
        assert x.shape is not None
        w, shape = self._w, list(x.shape.dims)
        shape[axis] = rows
        cuts = [w.whole("zero", 0), w.whole(f"upto.{rows}", rows), w.whole(f"axis.{axis}", axis)]
        return w.node("Slice", [x, *cuts], shape, dtype=x.dtype or INTEGER)

"""A tree of drafts in one call: a level is the best tokens of several parents (EAGLE-2, arXiv 2406.16858)."""

from __future__ import annotations

import onnx_ir as ir

from paceline.export.heads.writer import INTEGER, HeadWriter
from paceline.runtime.part import CHILDREN


class Beam:
    """Grows a tree inside a graph, level by level: `expand` the parents of one, then `best` chooses those of the next.

    The law of a parent is the softmax of `scale` times its scores. Of all children of a level the `width` ones go on
    that are likeliest from the root on.
    """

    def __init__(self, w: HeadWriter, depth: int, width: int) -> None:
        self._w, self.width = w, width
        self._count = min(CHILDREN, w.config.vocab)
        self._noise, self._rows = w.noise(depth)
        self._scale = w.input("scale", ir.DataType.FLOAT, 1)
        self._scores: ir.Value | None = None
        self._tokens: list[ir.Value] = []
        self._chances: list[ir.Value] = []
        self._places: list[ir.Value] = []
        self._children: ir.Value | None = None
        self._sums: ir.Value | None = None
        self._above: ir.Value | None = None

    @property
    def inputs(self) -> list[ir.Value]:
        """What the tree is drafted with."""
        return [self._noise, self._scale]

    def expand(self, logits: ir.Value) -> None:
        """The children of all parents of a level, by their logits [P, Vd]."""
        w, level = self._w, len(self._tokens)
        parents = self.width if level else 1
        scores = w.node("Add", [logits, self._rows[level]], (parents, w.config.vocab))
        self._scores = scores if self._scores is None else self._scores
        law = w.node("Mul", [scores, self._scale], scores.shape)
        law = w.node("LogSoftmax", [law], scores.shape, {"axis": -1})
        chances, self._children = self._top(law, self._count, (parents, self._count))
        self._sums = chances
        if self._above is not None:
            self._sums = w.node("Add", [chances, self._above], chances.shape)
        self._tokens.append(w.ids(self._children))
        self._chances.append(chances)

    def best(self) -> tuple[ir.Value, ir.Value]:
        """Of the parents of the next level: which of the last level's parents each is a child of, int64[width], and its
        row of the vocabulary.
        """
        w, width = self._w, self.width
        assert self._sums is not None
        assert self._children is not None
        flat = w.whole("flat", -1)
        count = self._count * (width if len(self._tokens) > 1 else 1)
        sums = w.node("Reshape", [self._sums, flat], (count,))
        values, places = self._top(sums, width, (width,))
        self._places.append(places)
        self._above = w.node("Unsqueeze", [values, w.whole("one", 1)], (width, 1))
        children = w.node("Reshape", [self._children, flat], (count,), dtype=INTEGER)
        slots = w.node("Div", [places, w.whole("children", self._count)], (width,), dtype=INTEGER)
        return slots, w.node("Gather", [children, places], (width,), {"axis": 0}, INTEGER)

    def take(self, x: ir.Value, slots: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Rows [width, ...] of a value that has a row for each parent of the last level."""
        assert x.shape is not None
        return self._w.node("Gather", [x, slots], (self.width, *x.shape.dims[1:]), {"axis": 0}, dtype)

    def outputs(self) -> list[ir.Value]:
        """Children of all parents [N, children], the root's first: ids of the target, and logarithms of their chances;
        the place of each later parent among the children of its level, int64[N - 1]; the root's scores [1, Vd].
        """
        w = self._w
        tokens = w.joined(self._tokens, 0, INTEGER)
        chances, parents = w.joined(self._chances, 0), w.joined(self._places, 0, INTEGER)
        assert self._scores is not None
        found = {"tokens": tokens, "chances": chances, "parents": parents, "scores": self._scores}
        for name, value in found.items():
            value.name = name
        return list(found.values())

    def _top(self, x: ir.Value, count: int, shape: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
        w = self._w
        inputs = [x, w.whole(f"best.{count}", count)]
        values, places = w.nodes("TopK", inputs, [shape, shape], {"axis": -1, "largest": 1, "sorted": 1})
        places.dtype = INTEGER
        return values, places

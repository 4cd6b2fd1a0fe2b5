"""The first layers of a target in two graphs: they say early what may follow, and the rest goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paceline.memory.cache import CacheFormat
from paceline.runtime.contracts import Array, Early
from paceline.runtime.manifest import Part
from paceline.runtime.model.contract import Shapes, contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.split import CHANCES, IDS, halves


class Runs(Protocol):
    """What a pass runs."""

    def run(self, shrink: bool = False) -> None:
        """One pass over arrays that are bound."""


@dataclass(frozen=True, slots=True)
class FirstHalf:
    """The graph of a target's first layers, and who is told what they say.

    hear: is called between the two halves of a pass that asks for logits; the next pass overwrites the arrays.
    """

    graph: Graph
    target: Part
    hear: Callable[[Early], None]

    @property
    def tap(self) -> str:
        """The hidden states that the rest goes on with."""
        assert self.target.split is not None
        return f"hidden.{self.target.split.layer}"

    def check(self, rest: Graph, cache: CacheFormat) -> None:
        """Raise BundleError unless both graphs are what the manifest says."""
        self.graph.check(*early_contract(self.target, cache))
        rest.check(*contract(halves(self.target)[1], cache))

    def room(self, rows: int) -> dict[str, Array]:
        """Arrays for what it says of so many rows."""
        assert self.target.split is not None
        shape = rows, self.target.split.named
        return {IDS: np.zeros(shape, np.int64), CHANCES: np.zeros(shape, np.float32)}


def early_contract(target: Part, cache: CacheFormat) -> tuple[Shapes, Shapes]:
    """Inputs and outputs of the first graph of a target in two, as of `contract`."""
    assert target.split is not None
    first, named = halves(target)[0], target.split.named
    inputs, outputs = contract(first, cache)
    del outputs[first.output[0]]
    return inputs, outputs | {IDS: ("R", named), CHANCES: ("R", named)}


class InTurn:
    """Both halves of a pass, one behind the other, and between them what the first one said."""

    def __init__(
        self, first: Runs, rest: Runs, early: Mapping[str, Array], hear: Callable[[Early], None]
    ) -> None:
        self._first, self._rest, self._hear = first, rest, hear
        self._early = Early(early[IDS], early[CHANCES])

    def run(self, shrink: bool = False) -> None:
        """One pass. Raises BundleError where it fails."""
        self._first.run(shrink)
        if len(self._early.ids):
            self._hear(self._early)
        self._rest.run(shrink)

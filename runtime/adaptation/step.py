"""A training step of a draft model's adapters: what was learnt so far, a sample, and what comes of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.contract import MOMENTS, groups, sample_shapes, step_contract
from paceline.runtime.manifest import Part
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Bound

Floats = npt.NDArray[np.float32]
Sample = Mapping[str, npt.NDArray[Any]]
"""Arrays by name, see `contract.sample_shapes`."""
STATES = 2 * (1 + len(MOMENTS))
"""Arrays that a step has for each adapter: it and its moments, before and after."""
SECOND = ".b"
"""How names of second factors end: where these are zero nothing is changed."""


class TrainingStep:
    """Runs the graph of a training step; `adapters` and `steps` are what it has learnt.

    Raises BundleError for a graph that is not what the manifest says.
    """

    def __init__(self, graph: Graph, part: Part) -> None:
        graph.check(*step_contract(part))
        self.part = part
        shapes = {
            f"{kind}{name}": sizes
            for kind in ("", *(f"{moment}." for moment in MOMENTS))
            for name, sizes in part.adapters.items()
        }
        self._state: dict[str, Floats] = {name: np.zeros(sizes, np.float32) for name, sizes in shapes.items()}
        self._made = {f"new.{name}": np.zeros_like(array) for name, array in self._state.items()}
        self._sample = {name: np.zeros(shape, kind) for name, (kind, shape) in sample_shapes().items()}
        self._step, self._rate = (np.zeros(groups(part), np.float32) for _ in range(2))
        self._loss = np.zeros(1, np.float32)
        self.steps = 0
        """Steps that it has learnt."""
        self._since: Floats = np.zeros_like(self._step)
        inputs = {**self._state, **self._sample, "step": self._step, "rate": self._rate}
        self._bound = Bound(graph, inputs, {"loss": self._loss, **self._made})
        self.forget()

    @property
    def adapters(self) -> dict[str, Floats]:
        """The adapters as they are; not to be written to."""
        return {name: self._state[name] for name in self.part.adapters}

    def forget(self) -> None:
        """Begin anew: second factors are zero, so that nothing changes; first ones are random, so that they learn."""
        rng = np.random.default_rng(0)
        for name, array in self._state.items():
            array.fill(0)
            if name in self.part.adapters and name.endswith(".a"):
                array[:] = rng.standard_normal(array.shape, np.float32) / np.sqrt(array.shape[1])
        self.steps = 0
        self._since[:] = 0

    def loss_without(self, sample: Sample) -> float:
        """Of a sample, as if nothing had been learnt."""
        held = {name: array.copy() for name, array in self.adapters.items() if name.endswith(SECOND)}
        for name in held:
            self._state[name].fill(0)
        self._fill(sample)
        self._bound.run()
        for name, array in held.items():
            self._state[name][:] = array
        return float(self._loss[0])

    def put(self, adapters: Mapping[str, Floats], steps: int) -> None:
        """Go on from what was learnt before. Raises ValueError where shapes are others, or numbers are not finite."""
        for name, array in self.adapters.items():
            if name not in adapters or adapters[name].shape != array.shape:
                raise ValueError(f"it has no adapter {name} of this shape")
            if not np.isfinite(adapters[name]).all():
                raise ValueError(f"the adapter {name} holds numbers that are not finite")
        self.forget()
        for name, array in self.adapters.items():
            array[:] = adapters[name]
        self.steps = steps

    def probe(self, shrink: bool = False) -> None:
        """Run without learning anything. shrink: what it took for temporaries, and all that was free, is given back."""
        self._bound.run(shrink)

    def run(self, sample: Sample, *rates: float) -> float:
        """Learn from a sample; the loss before. A step whose result is not finite changes nothing.

        rates: of the adapters, and of what predicts acceptance where there is such a thing; 0 leaves them as they are.
        """
        self._fill(sample)
        self._rate[:] = rates
        self._step[:] = self._since + 1
        self._bound.run()
        loss = float(self._loss[0])
        if not np.isfinite(loss) or not all(np.isfinite(made).all() for made in self._made.values()):
            return loss
        self._since += self._rate != 0
        for name, array in self._state.items():
            array[:] = self._made[f"new.{name}"]
        self.steps += 1
        return loss

    def _fill(self, sample: Sample) -> None:
        for name, array in self._sample.items():
            array[:] = sample[name]

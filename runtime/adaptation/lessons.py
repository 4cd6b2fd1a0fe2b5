"""How one session takes part in learning: laws of its answers go to the learner, what was learnt into its models."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.adaptation.laws import Laws
from paceline.runtime.adaptation.learner import Learner
from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.contracts import Outcome
from paceline.runtime.model.model import Model
from paceline.runtime.request import Request


class Lessons:
    """Of one session. Adapters change when an answer begins, and nowhere else."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._models: dict[str, tuple[Pupil, Model]] = {}
        self._held: dict[str, int] = {}
        self._laws = Laws()

    def add(self, pupil: Pupil, model: Model) -> None:
        """A draft model of this session that learns."""
        self._models[pupil.name] = pupil, model
        self._held.pop(pupil.name, None)

    def enter(self) -> None:
        """An answer begins."""
        self.learner.enter()

    def begin(self, request: Request) -> None:
        """A stretch of the answer begins: draft with what was learnt.

        Where the answer depends on what is drafted, that of a seed may not depend on what was answered before: then
        draft as if nothing had been learnt.
        """
        with self.learner.still():
            for name, (pupil, model) in self._models.items():
                steps = 0 if request.draft_dependent else pupil.step.steps
                if self._held.get(name) != steps or steps:
                    for label, array in model.adapters.items():
                        array[:] = pupil.step.adapters[label] if steps else 0
                self._held[name] = steps
        self._laws.begin(request.conversation, request.prompt_length)

    def see(self, outcome: Outcome, length: int) -> None:
        """A round of an answer whose text now has `length` tokens."""
        self._laws.see(outcome, length)

    def keep(self, tokens: Sequence[int]) -> None:
        """The stretch is over; its text."""
        episode = self._laws.episode(tokens) if self._models else None
        if episode is not None:
            self.learner.show(episode)

    def leave(self, seconds: float, accepted: int, tested: int) -> None:
        """The answer is over, which took so long; so many levels were accepted, of so many that were judged."""
        for name, (pupil, _) in self._models.items():
            pupil.count(accepted, tested, self._held.get(name, 0) > 0)
        self.learner.leave(seconds)

"""What drafting beside the target came to in earlier answers on this device: what `--mirror auto` goes by."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from math import isfinite

from paceline.runtime.bundle.measurements import keep, read_all
from paceline.runtime.control.overlap import HIDDEN
from paceline.runtime.stats import Statistics

_FILE = "beside.json"
_KEPT = 100
_ROUNDS = 2000.0
"""So many rounds count at most: texts and machines change."""
_USUAL = 32
"""What is usual counts as so many rounds, drafts or tokens."""
_SLOWEST = 4.0
"""What the target's passes are slowed down by at most: what is more was another program."""


@dataclass(frozen=True, slots=True)
class Experience:
    """Sums over rounds; seconds.

    rounds, rows, verify: rounds beside whose target passes looked at so many rows in all, and what these took. hits,
    misses, hit_seconds, miss_seconds: of `Tally`. accepted, tested: drafted tokens, wherever they were drafted.
    """

    rounds: float = 0.0
    rows: float = 0.0
    verify: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    hit_seconds: float = 0.0
    miss_seconds: float = 0.0
    accepted: float = 0.0
    tested: float = 0.0

    def after(self, stats: Statistics) -> Experience:
        """With one more answer."""
        tally, new = stats.beside, Experience(accepted=stats.accepted, tested=stats.tested)
        if tally is not None and tally.passes:
            new = replace(
                new,
                rounds=stats.rounds,
                rows=stats.drafted + stats.rounds,
                verify=stats.seconds["verify"],
                hits=tally.hits,
                misses=tally.misses,
                hit_seconds=tally.hit_seconds,
                miss_seconds=tally.miss_seconds,
            )
        drafts, rounds = (min(1.0, _ROUNDS / max(count, 1.0)) for count in (self.tested, self.rounds))
        fade = dict.fromkeys(("accepted", "tested"), drafts)
        known, more = asdict(self), asdict(new)
        return Experience(**{name: fade.get(name, rounds) * known[name] + more[name] for name in known})

    def hit(self, usual: float) -> float:
        """How often the target says what was drafted beside it."""
        return (self.hits + _USUAL * usual) / (self.hits + self.misses + _USUAL)

    @property
    def hidden(self) -> float:
        """How much of a draft is then there already: by what a draft takes that was not foreseen."""
        if not self.hits or not self.misses or not self.miss_seconds:
            return HIDDEN
        found = 1 - (self.hit_seconds / self.hits) / (self.miss_seconds / self.misses)
        return (max(found, 0.0) * self.hits + _USUAL * HIDDEN) / (self.hits + _USUAL)

    def chance(self, usual: float) -> float:
        """That a drafted token is accepted if the one before it was. usual: of this bundle."""
        return (self.accepted + _USUAL * usual) / (self.tested + _USUAL)

    def slower(self, seconds: float) -> float:
        """How many times as long a pass of the target takes beside a draft model. seconds: of one of `width` rows
        alone."""
        if not self.rounds or not seconds:
            return 1.0
        found = min(max(self.verify / self.rounds / seconds, 1.0), _SLOWEST)
        return (found * self.rounds + _USUAL) / (self.rounds + _USUAL)

    @property
    def source(self) -> str:
        """What this rests on, in words."""
        return f"{self.rounds:.0f} rounds of earlier answers" if self.rounds else "what is usual"

    @property
    def width(self) -> float:
        """Rows of the target's passes, in the mean."""
        return self.rows / self.rounds if self.rounds else 1.0


class Journal:
    """The experience with one pair of models, kept in the user's cache folder from one answer to the next."""

    def __init__(self, key: str, drafter: str) -> None:
        self._key, self.drafter = key, drafter

    def read(self) -> Experience:
        """What is known; nothing where the file makes no sense."""
        found = read_all(_FILE).get(self._key)
        if not isinstance(found, list) or len(found) != len(astuple(Experience())):
            return Experience()
        if not all(isinstance(x, int | float) and isfinite(x) and x >= 0 for x in found):
            return Experience()
        return Experience(*map(float, found))

    def learn(self, stats: Statistics) -> None:
        """An answer of this drafter has ended."""
        if stats.tested:
            keep(_FILE, self._key, [round(x, 6) for x in astuple(self.read().after(stats))], _KEPT)

"""What an n-gram cache learnt, kept from session to session: a file for each user and pair of vocabularies.

It holds tokens of the target that were used with this draft model, and the draft tokens that spell them; no order, no
text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paceline.runtime.bundle.learned_file import Content, LearnedFile
from paceline.runtime.bundle.whole_file import alone
from paceline.runtime.translation.sides import Sides

_VERSION, _LARGEST = 1, 1 << 26
Entry = tuple[int, tuple[int, ...]]


class _Saved(Content, frozen=True, array_like=True, forbid_unknown_fields=True):
    entries: list[Entry]


class SavedNgrams:
    """The file of one pair. pair: names both vocabularies."""

    def __init__(self, sides: Sides, pair: str) -> None:
        self._sides, self._pair = sides, pair
        self._file = LearnedFile("ngrams", pair, _Saved, _VERSION, _LARGEST)

    @property
    def path(self) -> Path | None:
        """None where this user has no cache folder."""
        return self._file.path

    def load(self) -> None:
        """Fill the cache with what was saved; nothing where there is no such file, or none that makes sense."""
        self._sides.ngrams.fill(self._read())

    def save(self) -> None:
        """Add what is known now to what the file holds by now, whole or not at all. A folder that cannot be written
        costs only what was learnt.
        """
        if self.path is None or not self._sides.ngrams.fresh:
            return
        try:
            with alone(self.path):
                known = dict(self._read())
                for token, run in self._sides.ngrams.entries():
                    known.pop(token, None)
                    known[token] = run
                self._file.write(_Saved(_VERSION, self._pair, list(known.items())))
        except OSError:
            return
        self._sides.ngrams.fresh = 0

    def _read(self) -> Iterable[Entry]:
        """Entries whose draft tokens really spell their token: no file can make a draft wrong."""
        try:
            saved = self._file.read()
        except (OSError, ValueError):
            saved = None
        if saved is None:
            return []
        draft, target = self._sides.draft, self._sides.target
        return [
            (token, run)
            for token, run in saved.entries
            if 0 <= token < len(target)
            and len(run) > 1
            and all(0 <= piece < len(draft) for piece in run)
            and target.pieces[token] == draft.spells(run)
        ]

"""Plain decoding as a drafter: nothing is drafted."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class Plain:
    """Always a one-node tree."""

    name = "none"
    needs: frozenset[str] = frozenset()

    def footprint(self, limit: DraftLimit) -> int:
        """Nothing."""
        return 0

    def begin(self, request: Request) -> None:
        """Nothing."""

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """The last token alone."""
        return TokenTree.root(tokens[-1])

    def observe(self, outcome: Outcome) -> None:
        """Nothing."""

    def reset(self) -> None:
        """Nothing."""

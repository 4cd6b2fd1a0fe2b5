"""A draft model's drafter at work for a target of another vocabulary: all that is exchanged is translated here."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np

from paceline.memory.model import READING_BYTES
from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.words import Translation
from paceline.runtime.request import Request
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.translation.asking import TranslatedNoise, translate_request
from paceline.runtime.translation.crossing import Crossing
from paceline.runtime.translation.lattice import Lattice, Translated
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.reading import Reading
from paceline.runtime.translation.retokenizer import Retokenizer
from paceline.runtime.translation.sides import Sides
from paceline.runtime.tree import TokenTree

_PIECES, _LEARNING = 1.3, 0.02
"""Draft tokens that spell a token of the target at first, and how fast that is corrected."""
_MOST_PIECES = 8.0
_LOST = 4
"""Rounds in which nothing was accepted, after which the text is cut anew."""


class Translator(Protocol):
    """Reads what was drafted as tokens of the target."""

    def begin(self, request: Request) -> None:
        """An answer begins."""

    def translate(self, tokens: Sequence[int], draft: TokenTree, limit: DraftLimit) -> Translated:
        """A tree behind a text, at most as large as the limit."""

    def prefer(self, longer: bool) -> None:
        """Of two readings of the same pieces the target took the longer one, or the other."""


class _Proposed(NamedTuple):
    draft: TokenTree
    translated: Translated


class Border:
    """A drafter whose tokens are not the target's. It is shown texts, requests and outcomes in its own tokens."""

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        drafter: Drafter,
        sides: Sides,
        translation: Translation = "ngram",
        context: int = 0,
        crossing: Crossing | None = None,
    ) -> None:
        """context: tokens of the target's text at most. crossing: where the drafter leaves work beside the target."""
        self.name, self._crossing = drafter.name, crossing
        self._drafter, self._sides, self._context = drafter, sides, context
        self._shared = self._ngrams = sides.ngrams if translation == "ngram" else None
        self._hidden = sides.unshared if translation == "intersection" else frozenset[int]()
        self._lattice = Lattice(sides, self._ngrams)
        self._translator: Translator = (
            Retokenizer(sides.draft, sides.target) if translation == "text" else self._lattice
        )
        self._reading = self._new_reading()
        self._request: Request | None = None
        self._noise: TranslatedNoise | None = None
        self._proposed: _Proposed | None = None
        self._pieces, self._lost, self._alone = _PIECES, 0, False

    def footprint(self, limit: DraftLimit) -> int:
        """What its model takes, and the text as it reads it."""
        return self._drafter.footprint(limit) + self.bytes

    @property
    def bytes(self) -> int:
        """Bytes of the text in both vocabularies, at most."""
        return READING_BYTES * self._context

    def begin(self, request: Request) -> None:
        """The drafter itself begins with the first proposal: only then it is known how long the prompt is to it.

        Where the answer depends on what is drafted it begins with nothing that was learnt before, the way in which the
        text was cut included.
        """
        self._request, self._proposed, self._lost = request, None, 0
        self._alone = request.draft_dependent
        self._lattice.begin(request)
        if self._crossing is not None:
            self._crossing.begin(request)
        if request.draft_dependent:
            self._pieces = _PIECES
            if self._shared is not None:
                self._ngrams = NgramCache(self._shared.most_bytes)
            self._reading = self._new_reading()
        else:
            self._ngrams = self._shared
            self._reading.ngrams = self._ngrams
        self._lattice.ngrams = self._ngrams

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """What the draft model proposes, read as tokens of the target in every way that is likely."""
        self._proposed = None
        if self._request is not None:
            self._reading.open(tokens, self._request.conversation, self._request.prompt_length)
        read = self._reading.follow(tokens)
        if self._request is not None:
            self._begin(self._request, tokens)
        # A token takes several passes, and is worth at most one pass of the target.
        dear = limit.step_price * self._pieces + limit.price(1) >= 1
        if not read or min(limit.nodes, limit.depth) <= 0 or dear:
            return TokenTree.root(tokens[-1])
        if self._noise is not None:
            self._noise.start(len(read), len(tokens))
        if self._crossing is not None:
            self._crossing.start(tokens, self._reading)
        draft = self._drafter.propose(read, self._in_pieces(limit))
        if len(draft) == 1:
            return TokenTree.root(tokens[-1])
        made = self._translator.translate(tokens, draft, limit)
        self._proposed = _Proposed(draft, made)
        return made.tree

    def _begin(self, request: Request, tokens: Sequence[int]) -> None:
        self._request = None
        prompt = self._reading.length_at(min(request.prompt_length, len(tokens)))
        shared = GumbelNoise(request.seed, request.number)
        self._noise = TranslatedNoise(shared, self._sides.mapping, self._ngrams)
        self._drafter.begin(translate_request(request, self._reading, prompt, self._noise, self._hidden))

    def _in_pieces(self, limit: DraftLimit) -> DraftLimit:
        """The limit in draft tokens: a token takes several of them, and so many passes."""
        ratio = self._pieces
        return DraftLimit(
            ceil(limit.nodes * ratio),
            ceil(limit.depth * ratio),
            limit.step_price * ratio,
            limit.node_price,
            limit.node_prices,
        )

    def observe(self, outcome: Outcome) -> None:
        """What became of the proposal, in the draft model's tokens; and how the text spells its tokens."""
        emitted, judged = outcome.tokens, len(outcome.scored.logits) > 0
        if judged or not self._alone:
            for token in emitted:
                self._learn(token)
        if self._crossing is not None:
            self._crossing.observe(outcome)
        proposed, self._proposed = self._proposed, None
        if proposed is None or not judged:
            return
        went = _followed(proposed.translated.tree, emitted)
        self._compare(proposed.translated, set(went))
        draft, path = self._agreed(proposed, went, emitted)
        self._lost = 0 if len(path) > 1 else self._lost + 1
        if self._lost == _LOST:
            self._reading.settle()
        rows = np.empty((len(draft), 0), np.float32)
        self._drafter.observe(Outcome(draft, Scored(rows), Verdict(path, 0, len(path))))

    def _learn(self, token: int) -> None:
        """A verified token of the target: how many pieces it takes, and which."""
        run = self._reading.run_of(token)
        self._pieces += _LEARNING * (min(max(len(run), 1), _MOST_PIECES) - self._pieces)
        if len(run) > 1 and self._ngrams is not None:
            self._ngrams.learn(token, run)

    def _compare(self, made: Translated, path: set[int]) -> None:
        """Where two readings of the same pieces stood side by side, which one the target took."""
        for alone, longer in made.longer:
            if (alone in path) != (longer in path):
                self._translator.prefer(longer in path)

    def _agreed(
        self, proposed: _Proposed, path: Sequence[int], emitted: Sequence[int]
    ) -> tuple[TokenTree, tuple[int, ...]]:
        """Draft nodes along which the text went on: those of tokens in the tree, then the pieces of the next.

        What follows where the whole text went along was not judged, and is cut off.
        """
        draft, made = proposed
        node = next((made.ends[at] for at in reversed(path) if made.ends[at] >= 0), 0)
        if len(path) > len(emitted):
            unseen = set(_below(draft, node))
            return draft.prune([n for n in range(len(draft)) if n not in unseen]), draft.path(node)
        for piece in self._reading.run_of(emitted[len(path) - 1]):
            after = [c for c in draft.children(node) if int(draft.tokens[c]) == piece]
            if not after:
                break
            node = after[0]
        return draft, draft.path(node)

    def _new_reading(self) -> Reading:
        return Reading(self._sides, self._ngrams)

    def reset(self) -> None:
        """Forget the text."""
        self._drafter.reset()
        self._reading = self._new_reading()
        self._proposed = None


def _followed(tree: TokenTree, emitted: Sequence[int]) -> list[int]:
    """The nodes of a tree that a text went along, the root first."""
    path = [0]
    for token in emitted:
        child = next((c for c in tree.children(path[-1]) if int(tree.tokens[c]) == token), None)
        if child is None:
            break
        path.append(child)
    return path


def _below(tree: TokenTree, node: int) -> list[int]:
    """All nodes below one."""
    found = {node}
    for child, parent in enumerate(tree.parents.tolist()):
        if parent in found:
            found.add(child)
    return sorted(found - {node})

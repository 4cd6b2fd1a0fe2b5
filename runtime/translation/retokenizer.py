"""String-level exact match: what was drafted as a text that the target's tokenizer cuts anew (SLEM, 2502.05202)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.request import Request
from paceline.runtime.translation.lattice import UNKNOWN, Translated
from paceline.runtime.translation.spelling import Spelling
from paceline.runtime.tree import TokenTree

_BEHIND = 8
"""Tokens of the target's text that are cut again in front of what was drafted: a tokenizer looks at what is near."""


class Retokenizer:
    """Reads the first path of a draft as text. Nothing where the target would cut what is before."""

    def __init__(self, draft: Spelling, target: Spelling) -> None:
        self._draft, self._target = draft, target

    def begin(self, request: Request) -> None:
        """Nothing is learnt."""

    def prefer(self, longer: bool) -> None:
        """There is one reading only."""

    def translate(self, tokens: Sequence[int], draft: TokenTree, limit: DraftLimit) -> Translated:
        """A chain of target tokens behind a text, at most as deep as the limit, each worth its price."""
        path = _first_path(draft)
        spelled = [self._draft.spells([int(draft.tokens[node])]) for node in path]
        edges = list(accumulate(map(len, spelled)))
        chain, scores, ends = [tokens[-1]], [1.0], [0]
        at, done, whole = 0, 0, 1.0
        for token in self._cut(self._target.spells(tokens[-_BEHIND:]), b"".join(spelled)):
            at, score = at + len(self._target.pieces[token] or b""), 1.0
            while done < len(edges) and edges[done] <= at:
                score *= draft.scores[path[done]] if draft.scores else UNKNOWN
                done += 1
            whole *= score
            if len(chain) > min(limit.depth, limit.nodes) or whole < limit.price(len(chain)):
                break
            chain.append(token)
            scores.append(score)
            ends.append(path[done - 1] if done and edges[done - 1] == at else -1)
        return Translated(TokenTree.chain(chain, draft.sources[1], scores=scores), tuple(ends))

    def _cut(self, behind: bytes, drafted: bytes) -> list[int]:
        """Target tokens of what was drafted, as far as it holds whole characters."""
        text = (behind + drafted).decode(errors="ignore")
        tokens = self._target.encode(text)
        # SentencePiece puts a blank before a text.
        at = len(text.encode()) - len(self._target.spells(tokens))
        for place, token in enumerate(tokens):
            if at == len(behind):
                return tokens[place:]
            at += len(self._target.pieces[token] or b"")
        return []


def _first_path(draft: TokenTree) -> list[int]:
    """The chain of first children."""
    path, node = list[int](), 0
    while children := draft.children(node):
        node = children[0]
        path.append(node)
    return path

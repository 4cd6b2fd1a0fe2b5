"""Several drafters in one tree: each branch is kept for what its proposers were worth so far."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree, proposers

_BRINGS, _LEARNING = 2.0, 0.05
"""Accepted tokens that a draft model is thought to bring at first, and how fast that is corrected."""
_LEAST = 0.02
"""Nodes less likely than this are left out, however cheap."""
_DEEPEST, _LAST = 4, 3
"""Levels and ranks beyond these are judged together."""
_STRENGTH = 6.0
"""Observations that the first guess of an acceptance counts as."""
_FADE = 128
"""Rounds after which counts are halved: what was left out is tried again."""


class Fused:
    """Merges the drafters' trees and keeps the nodes most likely to be accepted.

    A node that several drafters propose stands once, its source their names joined by commas. Acceptance is
    learnt from the outcomes for each source, level and rank (place among the siblings of that source); a
    node's score is the product down its path; nodes below their price are left out, or below `worth` where nothing
    is known of prices.

    A drafter that is `costly` is not asked where what the others found promises more than it usually brings.

    Where a drafter sampled, its draws stay or go by level and rank alone: whether a draw is kept may not
    depend on its value, or the rule would test it against a law that it was not drawn from. So what others
    think of a drawn node never changes its score. Of two drafters that sample the second one's nodes become
    picks.
    """

    def __init__(
        self, drafters: Sequence[Drafter], worth: float = 0.1, costly: frozenset[str] = frozenset()
    ) -> None:
        names = [d.name for d in drafters]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(
                f"{','.join(names) or 'nothing'} cannot be fused: name two or more different drafters"
            )
        self.name = ",".join(names)
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in drafters))
        self._drafters, self._worth = tuple(sorted(drafters, key=lambda d: d.name in costly)), worth
        self._costly = costly
        self._forget()

    def footprint(self, limit: DraftLimit) -> int:
        """All of them together."""
        return sum(d.footprint(limit) for d in self._drafters)

    def begin(self, request: Request) -> None:
        """Passed on. What was learnt stays, but where the output depends on what is drafted."""
        if request.draft_dependent:
            self._forget()
        for drafter in self._drafters:
            drafter.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """The best nodes of all the drafters' trees, each drafted under the same limit."""
        trees: list[TokenTree] = []
        for drafter in self._drafters:
            if drafter.name in self._costly and _promised(trees) > self._brings[drafter.name]:
                continue
            tree = drafter.propose(tokens, limit)
            if len(tree) > 1:
                trees.append(tree)
        if not trees:
            return TokenTree.root(tokens[-1])
        trees.sort(key=lambda tree: (not tree.dists, tree.sources[1] not in self._costly))
        merged = trees[0]
        for tree in trees[1:]:
            picks = TokenTree.picked(tree.tokens.tolist(), tree.parents.tolist(), tree.sources, tree.scores)
            merged = merged.merge(picks)
        if len(trees) > 1:
            merged = _credit(merged, trees)
        keep = self._choose(merged, limit)
        return merged if len(keep) == len(merged) - 1 else merged.prune(keep)

    def _choose(self, tree: TokenTree, limit: DraftLimit) -> list[int]:
        """The draws that are worth it, with the nodes above them; then the best others."""
        scores, parents = self._chance.scores(tree), tree.parents.tolist()
        keep: set[int] = set()
        if tree.dists:
            for node, order in enumerate(tree.draw.tolist()):
                if order >= 0 and scores[node] >= self._worth:
                    while node > 0 and node not in keep:
                        keep.add(node)
                        node = parents[node]
        best = sorted(range(1, len(scores)), key=lambda node: -scores[node])
        for node in best:
            least = max(limit.price(len(keep) + 1), _LEAST) if limit.priced else self._worth
            if len(keep) >= limit.nodes or scores[node] < least:
                break
            keep.add(node)
        return list(keep)

    def observe(self, outcome: Outcome) -> None:
        """Passed on; the judged levels teach what each source is worth."""
        for drafter in self._drafters:
            drafter.observe(outcome)
        if len(outcome.scored.logits):
            self._chance.learn(outcome)
            self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        """What a costly drafter brings when it runs: mean accepted tokens of its own."""
        sources, path = outcome.tree.sources, outcome.verdict.path
        for name in self._costly:
            if any(name in proposers(source) for source in sources):
                brought = sum([name in proposers(sources[node]) for node in path[1:]])
                self._brings[name] += _LEARNING * (brought - self._brings[name])

    def reset(self) -> None:
        """Passed on; what the sources are worth stays."""
        for drafter in self._drafters:
            drafter.reset()

    def _forget(self) -> None:
        self._brings = dict.fromkeys(self._costly, _BRINGS)
        self._chance = _Chance()


def _promised(trees: Sequence[TokenTree]) -> float:
    """Accepted tokens that these trees expect by their own estimates, at most of any one."""
    best = 0.0
    for tree in trees:
        if tree.scores:
            chances = [1.0]
            for parent, score in zip(tree.parents.tolist()[1:], tree.scores[1:], strict=True):
                chances.append(chances[parent] * score)
            best = max(best, sum(chances) - 1.0)
    return best


def _credit(merged: TokenTree, trees: Sequence[TokenTree]) -> TokenTree:
    """The merged tree with every proposer of a node in its source; one that sampled stands first."""
    parents, tokens = merged.parents.tolist(), merged.tokens.tolist()
    at: dict[tuple[int, int], int] = {}
    for node in range(len(merged)):
        at.setdefault((parents[node], tokens[node]), node)
    named: list[list[str]] = [[] for _ in parents]
    for tree in trees:
        place = [0]
        for token, parent, source in zip(
            tree.tokens.tolist()[1:], tree.parents.tolist()[1:], tree.sources[1:], strict=True
        ):
            node = at[place[parent], token]
            place.append(node)
            if source not in named[node]:
                named[node].append(source)
    sources = tuple([",".join(names) for names in named])
    return TokenTree(merged.tokens, merged.parents, merged.draw, sources, merged.dists, merged.scores)


class _Chance:
    """How often a node was accepted whose parent was: by source, level and rank.

    At first a pick counts for what its drafter thinks of it, and a draw, whose value may not matter, for a guess.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int, int], list[float]] = {}  # accepted, judged
        self._rounds = 0

    def scores(self, tree: TokenTree) -> list[float]:
        """The chance of every node to be accepted."""
        parents = tree.parents.tolist()
        scores, depths = [1.0], [0]
        ranks: dict[tuple[int, str], int] = {}
        own = tree.scores or (0.0,) * len(tree)
        for node, source in enumerate(_judged_as(tree)[1:], 1):
            parent = parents[node]
            depths.append(depths[parent] + 1)
            rank = ranks[parent, source] = ranks.get((parent, source), -1) + 1
            accepted, judged = self._of(source, depths[node], rank)
            first = _guess(source, rank) if source.endswith("*") else own[node] or _guess(source, rank)
            chance = (accepted + _STRENGTH * first) / (judged + _STRENGTH)
            scores.append(scores[parent] * chance)
        return scores

    def learn(self, outcome: Outcome) -> None:
        """Every child of an accepted node was judged."""
        parents, sources, path = outcome.tree.parents.tolist(), _judged_as(outcome.tree), outcome.verdict.path
        level = {node: at for at, node in enumerate(path, 1)}
        accepted = set(path)
        ranks: dict[tuple[int, str], int] = {}
        for child in range(1, len(parents)):
            parent = parents[child]
            if parent in level:
                key = (parent, sources[child])
                rank = ranks[key] = ranks.get(key, -1) + 1
                counts = self._of(sources[child], level[parent], rank)
                counts[0] += child in accepted
                counts[1] += 1.0
        self._rounds += 1
        if self._rounds % _FADE == 0:
            for counts in self._counts.values():
                counts[:] = counts[0] / 2, counts[1] / 2

    def _of(self, source: str, depth: int, rank: int) -> list[float]:
        key = (source, min(depth, _DEEPEST), min(rank, _LAST))
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0.0, 0.0]
        return counts


def _judged_as(tree: TokenTree) -> Sequence[str]:
    """The source of every node; of a drawn node only who drew it, which stands first."""
    if not tree.dists:
        return tree.sources
    both = zip(tree.sources, tree.draw.tolist(), strict=True)
    return [proposers(source)[0] + "*" if order >= 0 else source for source, order in both]


def _guess(source: str, rank: int) -> float:
    return (0.7 if len(proposers(source)) > 1 else 0.5) * 0.5 ** min(rank, _LAST)

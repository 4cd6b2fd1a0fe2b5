"""Fusing drafters: the tree that comes out, what is learnt, and that sampling stays exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from branches import Branches, outcomes
from law_subjects import SUBJECTS
from toy_trees import exact_law, picked_tree, rows_of, score
from toys import TableModel

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(), "coupled", 0, 0, 1)


class Says:
    """Proposes whatever it is given."""

    needs: frozenset[str] = frozenset()

    def __init__(self, name: str, tree: Callable[[], TokenTree], needs: frozenset[str] = frozenset()) -> None:
        self.name, self.tree, self.needs = name, tree, needs
        self.calls: list[str] = []

    def footprint(self, limit: DraftLimit) -> int:
        return 10

    def begin(self, request: Request) -> None:
        self.calls.append("begin")

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        return self.tree()

    def observe(self, outcome: Outcome) -> None:
        self.calls.append("observe")

    def reset(self) -> None:
        self.calls.append("reset")


def chain(name: str, *tokens: int) -> Says:
    return Says(name, lambda: TokenTree.chain([0, *tokens], name))


def outcome(tree: TokenTree, path: tuple[int, ...], token: int = 9) -> Outcome:
    return Outcome(tree, Scored(np.zeros((len(tree), 10), np.float32)), Verdict(path, token, len(path)))


def test_a_node_of_two_drafters_stands_once_and_names_both() -> None:
    fused = Fused([chain("a", 1, 2), chain("b", 1, 3)])
    tree = fused.propose([0], DraftLimit(8, 4))
    assert fused.name == "a,b"
    assert dict(zip(tree.tokens.tolist(), tree.sources, strict=True)) == {0: "", 1: "a,b", 2: "a", 3: "b"}


def test_calls_reach_every_drafter_and_needs_and_footprints_add_up() -> None:
    one, two = chain("a", 1), Says("b", lambda: TokenTree.root(0), frozenset({"hidden"}))
    fused = Fused([one, two])
    fused.begin(GREEDY)
    fused.observe(outcome(fused.propose([0], DraftLimit(2, 2)), (0,)))
    fused.reset()
    assert one.calls == two.calls == ["begin", "observe", "reset"]
    assert fused.needs == {"hidden"}
    assert fused.footprint(DraftLimit(2, 2)) == 20


@pytest.mark.parametrize("drafters", [[], [Plain()], [PromptLookup(), PromptLookup()]])
def test_fewer_than_two_different_drafters_cannot_be_fused(drafters: list[Drafter]) -> None:
    with pytest.raises(ValueError, match="cannot be fused"):
        Fused(drafters)


def test_the_drafter_that_is_right_gets_the_room() -> None:
    fused = Fused([chain("wrong", 1, 2, 3), chain("right", 4, 5, 6)])
    limit = DraftLimit(3, 3)
    for _ in range(12):
        tree = fused.propose([0], limit)
        path, node = [0], 0
        for token in (4, 5, 6):
            match = [c for c in tree.children(node) if tree.tokens[c] == token]
            if not match:
                break
            node = match[0]
            path.append(node)
        fused.observe(outcome(tree, tuple(path)))
    assert fused.propose([0], limit).tokens.tolist() == [0, 4, 5, 6]


def test_a_drafter_that_was_left_out_is_tried_again() -> None:
    """It is wrong for 400 rounds, then right: the trials in between let it come back."""
    fused, limit = Fused([chain("a", 1), chain("b", 2)]), DraftLimit(8, 1)
    proposed = []
    for number in range(800):
        tokens = fused.propose([0], limit).tokens.tolist()
        proposed.append(1 in tokens)
        tree, right = fused.propose([0], limit), number >= 400 and 1 in tokens
        fused.observe(outcome(tree, (0, tokens.index(1)) if right else (0,)))
    left_out = proposed.index(False)
    assert left_out < 100
    assert any(proposed[left_out:400])
    assert sum(proposed[:400]) < 200
    assert all(proposed[-200:])
    assert 2 not in fused.propose([0], limit).tokens.tolist()


def test_prompt_chunks_teach_nothing_about_sources() -> None:
    fused = Fused([chain("a", 1, 2), chain("b", 3)])
    before = fused.propose([0], DraftLimit(2, 2))
    prompt = TokenTree.chain([5, 6, 7])
    for _ in range(50):
        fused.observe(Outcome(prompt, Scored(np.zeros((0, 10), np.float32)), Verdict((0, 1, 2), 8, 0)))
    assert fused.propose([0], DraftLimit(2, 2)).tokens.tolist() == before.tokens.tolist()


# -- law 5: exact, by enumeration of every draw and every test -----------------------------------------------

HISTORY = [1, 2, 0]
VOCAB = 3
CASES = {1: ((0, 1), (1, 2), (2, 3), (3, 4)), 2: ((0, 1), (1, 2))}  # samplers: (seed, nodes)


@pytest.fixture
def enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Law, "sample", lambda law, branches: branches.sample(law))


def sampled(name: str, seed: int, depth: int, branches: Branches) -> TokenTree:
    """A chain drawn from a table model."""
    rows, maker = rows_of(TableModel(VOCAB, sharpness=1.5, seed=seed)), LawMaker(Sampling(temperature=1.0), 1)
    seen, laws = list(HISTORY), {}
    for node in range(depth):
        laws[node] = maker.law(rows(seen), seen)
        seen.append(branches.sample(laws[node]))
    return TokenTree.chain(seen[len(HISTORY) - 1 :], name, laws)


def error(fused: Callable[[Branches], TokenTree], accept: str, seed: int) -> float:
    """Total variation between the first two tokens of a round and the target's law."""
    sampling, count = Sampling(temperature=1.0), 2
    rule, maker = make_rule(Request(sampling, accept, 0, 0, 1)), LawMaker(sampling, 1)
    target = rows_of(TableModel(VOCAB, sharpness=1.5, seed=1000 + seed))
    found = np.zeros((VOCAB,) * count)

    def run(branches: Branches) -> tuple[int, ...]:
        tree = fused(branches)
        verdict = rule.judge(tree, score(target, tree, HISTORY), HISTORY, branches)  # type: ignore[arg-type]
        return (*(int(tree.tokens[node]) for node in verdict.path[1:]), verdict.next_token)

    for chance, words in outcomes(run):
        head = words[:count]
        rest = exact_law(maker, target, [*HISTORY, *head], VOCAB, count - len(head))
        found[head] += chance * rest.reshape((VOCAB,) * (count - len(head)))
    exact = exact_law(maker, target, HISTORY, VOCAB, count)
    return 0.5 * float(np.abs(found.ravel() - exact).sum())


def fusion(seed: int, limit: DraftLimit, samplers: int, taught: int) -> Callable[[Branches], TokenTree]:
    """Sampling drafters beside one that picks, under a limit that does not hold them all.

    They have learnt that a sampler alone is always wrong and one that the other agrees with always right.
    """
    picks = picked_tree(np.random.default_rng(seed), HISTORY[-1], VOCAB, 4)
    lesson = TokenTree.picked([0, 1, 2, 1, 2], [-1, 0, 0, 2, 2], ["", "s0", "s0,picks", "s0", "s0,picks"])

    depth = min(limit.depth, limit.nodes)

    def propose(branches: Branches) -> TokenTree:
        drafters = [Says("picks", lambda: picks.prune(np.arange(limit.nodes + 1)[: len(picks)]))]
        for n in range(samplers):
            drafters.append(Says(f"s{n}", lambda n=n: sampled(f"s{n}", 10 * seed + n, depth, branches)))
        fused = Fused(drafters)
        for _ in range(taught):
            fused.observe(outcome(lesson, (0, 2, 4)))
        return fused.propose(HISTORY, limit)

    return propose


@pytest.mark.usefixtures("enumerated")
@pytest.mark.parametrize("accept", ["rejection", "block"])
@pytest.mark.parametrize("samplers", [1, 2])
def test_fusing_drafters_that_sample_keeps_the_law_of_the_target(accept: str, samplers: int) -> None:
    for seed, nodes in CASES[samplers]:
        assert error(fusion(seed, DraftLimit(nodes, 2), samplers, 60), accept, seed) < 1e-12


@pytest.mark.usefixtures("enumerated")
def test_a_sampled_chain_survives_fusion_with_its_laws() -> None:
    tree = next(tree for _, tree in outcomes(fusion(3, DraftLimit(4, 2), 1, 0)))
    assert sorted(tree.dists) == [0, next(n for n in range(len(tree)) if tree.draw[n] == 0)]


@pytest.mark.usefixtures("enumerated")
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_keeping_a_draw_because_another_drafter_agrees_breaks_the_law(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.runtime.drafters.fused._judged_as", lambda tree: tree.sources)
    assert error(fusion(0, DraftLimit(1, 2), 1, 60), accept, 0) > 1e-3


@pytest.mark.parametrize("name", [name for name in SUBJECTS if "," in name])
def test_a_fusion_proposes_what_one_of_its_parts_finds(name: str) -> None:
    fused = SUBJECTS[name]()
    fused.begin(GREEDY)
    tree = fused.propose([1, 2, 3, 4] * 4, DraftLimit(16, 6))
    assert (4, 1, 2, 3) in [tuple(tree.tokens[list(tree.path(node))].tolist()) for node in range(len(tree))]


def test_what_a_draft_model_brings_is_not_counted_in_rounds_of_one_whose_name_begins_alike() -> None:
    """`chain:a` ran in the first rounds only, `chain:ab` in all: the first is not thought worse for it."""

    def chain(name: str, token: int) -> TokenTree:
        return TokenTree.chain([0, token], name, scores=[1.0, 0.9])

    trees = {"chain:a": chain("chain:a", 1), "chain:ab": chain("chain:ab", 2)}
    fused = Fused(
        [Says(name, lambda tree=tree: tree) for name, tree in trees.items()], costly=frozenset(trees)
    )
    before = dict(fused._brings)
    for _ in range(40):
        fused.observe(outcome(trees["chain:ab"], (0,)))
    assert fused._brings["chain:a"] == before["chain:a"]
    assert fused._brings["chain:ab"] < 0.5 * before["chain:ab"]

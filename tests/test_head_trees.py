"""Trees that a head drafts in one call, and which graph is worth running."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
from law_subjects import hidden_states
from toy_heads import FORMS, opened
from toys import TableModel, TableTarget

from paceline.memory.cache import CacheFormat
from paceline.runtime.contracts import DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.drafters.offers import Offers
from paceline.runtime.drafters.ranks import Ranks
from paceline.runtime.loop import decode, read_prompt
from paceline.runtime.model.head import Head, Shape
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

VOCAB, IDS = 40, tuple(token for token in range(40) if token % 4 != 2)
TEXT = [3, 9, 12, 0, 33, 7, 8, 21, 5]
GREEDY = Request(Sampling(), "coupled", 0, 0, 1)
TREES = ((2, 4), (3, 2), (4, 3))
FREE = DraftLimit(16, 5)
both = pytest.mark.parametrize("attends", [False, True])


def head(attends: bool = True, form: CacheFormat = "fp32") -> Head:
    return opened(VOCAB, IDS, attends, form=form, trees=TREES).head()


def drafter(attends: bool, request: Request = GREEDY) -> HeadDrafter:
    made = HeadDrafter(head(attends), hidden_states())
    made.begin(request)
    return made


def outcome(tree: TokenTree, path: tuple[int, ...]) -> Outcome:
    return Outcome(tree, Scored(np.zeros((len(tree), 1), np.float32)), Verdict(path, 0, len(path)))


@both
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [Shape(*shape) for shape in TREES])
def test_every_branch_is_what_the_chain_says_after_its_tokens(
    attends: bool, form: CacheFormat, shape: Shape
) -> None:
    """The chain is made to go down a branch by what is added to its logits."""
    made = head(attends, form)
    assert made.read(TEXT, hidden_states())
    found = made.draft_tree(shape, TEXT[-1], 0.8)
    tokens, chances, parents = (array.copy() for array in found[:3])
    children = tokens.shape[1]
    for row in range(len(tokens)):
        path, at = list[int](), row
        while at:
            place = int(parents[at - 1])
            path.insert(0, int(tokens.ravel()[place]))
            at = place // children
        made.noise.fill(0)
        for level, token in enumerate(path):
            made.noise[level, IDS.index(token)] = 1e4
        depth = len(path) + 1
        chain, scores = made.draft(depth, TEXT[-1])
        assert chain[: depth - 1].tolist() == path
        row_scores = 0.8 * scores[depth - 1].astype(np.float64)
        law = row_scores - row_scores.max()
        law -= np.log(np.exp(law).sum())
        best = np.argsort(-law, kind="stable")[:children]
        assert tokens[row].tolist() == np.array(IDS)[best].tolist()
        np.testing.assert_allclose(chances[row], law[best], atol=2e-3)


@both
def test_greedy_output_is_plain_decodings_whatever_the_tree(attends: bool) -> None:
    world = TableModel(VOCAB, order=1, sharpness=3.0, seed=5)
    texts = []
    for trees in ((), *((shape,) for shape in TREES)):
        made = HeadDrafter(opened(VOCAB, IDS, attends, trees=trees).head(), hidden_states())
        made.begin(GREEDY)
        made.head.worth.update(dict.fromkeys(made.head.trees, -1e6))  # so that it runs
        target, tokens = TableTarget(world), list(TEXT)
        list(read_prompt(target, made, tokens, 4))
        rng, limit = np.random.default_rng(0), FixedLimit(12, 4, 0.001, 1e-6)
        for _ in decode(target, made, make_rule(GREEDY), limit, tokens, 40, rng):
            pass
        assert made.head._grown.keys() == set(trees)
        texts.append(tokens)
    row = list(TEXT)
    while len(row) < len(texts[0]):
        row.append(int(world.row(row[-1:]).argmax()))
    assert all(text == row[: len(text)] for text in texts)


@both
def test_a_tree_has_branches_beside_branches(attends: bool) -> None:
    tree = drafter(attends).propose(TEXT, FREE)
    assert len(tree) == 17
    parents = {parent for parent in tree.parents.tolist() if parent > 0}
    assert len([n for n in parents if tree.parents[n] == 0]) > 1
    assert all(tree.scores)


def test_coupled_trees_win_with_the_noise_of_the_target() -> None:
    request = Request(Sampling(temperature=1.0), "coupled", 3, 0, 1)
    made = drafter(False, request)
    tree = made.propose(TEXT, FREE)
    made.head.noise.fill(0)
    _, scores = made.head.draft(1, TEXT[-1])
    exact = scores[0] + GumbelNoise(3, 0).at(len(TEXT), np.array(IDS))
    assert tree.tokens[tree.children(0)[0]] == IDS[exact.argmax()]


def test_where_the_output_depends_on_drafts_no_tree_is_drafted() -> None:
    for accept in ("rejection", "block"):
        tree = drafter(True, Request(Sampling(temperature=1.0), accept, 0, 0, 1)).propose(TEXT, FREE)
        assert tree.is_chain()
    made = drafter(True, Request(Sampling(temperature=1.0), "typical", 0, 0, 1))
    made.propose(TEXT, FREE)
    assert not made.head._grown


def test_levels_of_which_none_knows_another_branch_without_a_graph() -> None:
    made = opened(VOCAB, IDS, False).head()
    made.model.part = msgspec.structs.replace(made.model.part, product=True)
    one = HeadDrafter(made, hidden_states())
    one.begin(GREEDY)
    tree = one.propose(TEXT, DraftLimit(30, 3))
    first = tree.children(0)
    below = [tree.tokens[tree.children(n)].tolist() for n in first[:2]]
    assert below[1]
    assert below[0][: len(below[1])] == below[1]


def test_static_trees_have_one_shape_whatever_is_read() -> None:
    made = HeadDrafter(opened(VOCAB, IDS, True).head(), hidden_states(), growth="static")
    made.begin(GREEDY)
    other = [*TEXT[:-1], 11]
    one, two = (made.propose(text, DraftLimit(9, 3)) for text in (TEXT, other))
    assert one.parents.tolist() == two.parents.tolist()
    assert one.tokens.tolist() != two.tokens.tolist()


def test_a_tree_runs_where_it_is_worth_its_time() -> None:
    ranks = Ranks([[0.4, 0.25, 0.1, 0.05]], [])
    made = head()
    offers = Offers(made, ranks)
    dear, cheap = DraftLimit(16, 5, 0.2, 0.01), DraftLimit(16, 5, 0.001, 0.01)
    assert offers.best(dear, 2, 5) is None
    assert offers.best(cheap, 4, 5) is not None
    made.worth.update(dict.fromkeys(made.trees, 2.0))  # as it was measured: no dearer than two levels
    assert offers.best(dear, 2, 5) is not None
    made.worth.update(dict.fromkeys(made.trees, 50.0))
    assert offers.best(dear, 2, 5) is None
    assert offers.best(DraftLimit(16, 1), 1, 1) is None  # none is so flat


def test_a_tree_that_brings_less_than_it_promises_is_left() -> None:
    offers = Offers(head(), Ranks([[0.4, 0.25, 0.1, 0.05]], []))
    limit, tried = DraftLimit(16, 5, 0.02, 0.01), set()
    tree = TokenTree.picked(list(range(17)), [-1] + [0] * 16, ["", *["head"] * 16], [1.0] * 17)
    for _ in range(200):
        shape = offers.best(limit, 4, 5)
        if shape is None:
            break
        tried.add(shape)
        offers.learn(outcome(tree, (0,)), "head")
    assert tried
    assert shape is None
    rich = Offers(head(), Ranks([[0.4, 0.25, 0.1, 0.05]], []))
    for _ in range(200):
        assert rich.best(limit, 4, 5) is not None
        rich.learn(outcome(tree, (0, 1, 2)), "head")


def test_ranks_are_learnt_of_children_of_accepted_nodes() -> None:
    ranks = Ranks([], [0.5])
    before = ranks.at(1), ranks.at(2)
    tree = TokenTree.picked([1, 2, 3, 4, 5], [-1, 0, 0, 1, 2], ["", *["head"] * 4], [1.0] * 5)
    for _ in range(40):
        ranks.learn(outcome(tree, (0, 2)), "head")
    assert ranks.at(1)[0] < before[0][0] / 2
    assert ranks.at(2)[0] < before[1][0] / 2  # node 4, the only child of the node that was accepted
    untouched = Ranks([], [0.5])
    untouched.learn(outcome(tree, (0, 2)), "lookup")
    assert untouched.at(1) == before[0]


def test_limits_on_the_way_to_a_tree() -> None:
    made = drafter(True)
    for nodes in (1, 2, 3, 7):
        assert len(made.propose(TEXT, replace(FREE, nodes=nodes))) <= nodes + 1
    tree = made.propose(TEXT, DraftLimit(16, 2))
    assert tree.depths().max() <= 2

"""Draft heads alone: what they read, what they draft, and how much of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

pytest.importorskip("onnx")
from law_subjects import hidden_states
from toy_heads import FORMS, Opened, known_toy, opened, random_toy
from toys import TableModel, TableTarget

from paceline.memory.cache import CacheFormat
from paceline.runtime.contracts import DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.loop import decode, read_prompt
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

VOCAB, IDS = 40, tuple(token for token in range(40) if token % 4 != 2)
TEXT = [3, 9, 12, 0, 33, 7, 8, 21, 5]
GREEDY = Request(Sampling(), "coupled", 0, 0, 1)
FREE = DraftLimit(16, 5)
both = pytest.mark.parametrize("attends", [False, True])


def drafter(attends: bool, request: Request = GREEDY) -> HeadDrafter:
    made = HeadDrafter(opened(VOCAB, IDS, attends).head(), hidden_states())
    made.begin(request)
    return made


def asked(accept: str = "coupled", seed: int = 0, **choices: object) -> Request:
    return Request(Sampling(**choices), accept, seed, 0, 1)


def logits(attends: bool, text: Sequence[int] = TEXT, levels: int = 5) -> tuple[list[int], np.ndarray]:
    """What a head says without noise: its chain, and float32[D, V]."""
    head = opened(VOCAB, IDS, attends).head()
    assert head.read(text, hidden_states())
    tokens, scores = head.draft(levels, text[-1])
    return tokens.tolist(), scores.copy()


def chain_of(tree: TokenTree) -> list[int]:
    """The first child of the first child, and so on."""
    node, found = 0, []
    while children := tree.children(node):
        node = children[0]
        found.append(int(tree.tokens[node]))
    return found


# -- what it reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_the_way_to_a_text_does_not_matter(form: CacheFormat, chunk: int) -> None:
    made = opened(VOCAB, IDS, True, form=form)
    whole, pieces = made.head(chunk=64), made.head(chunk=chunk)
    for end in (4, 6, 7, len(TEXT)):
        assert pieces.read(TEXT[:end], hidden_states())
    assert pieces.read([*TEXT[:5], 1, 1], hidden_states())  # another text, and back
    assert pieces.read(TEXT, hidden_states())
    assert whole.read(TEXT, hidden_states())
    assert pieces.model.tokens == whole.model.tokens == TEXT[1:]
    for levels in (1, 3, 5):
        tokens, scores = (a.copy() for a in whole.draft(levels, TEXT[-1]))
        again, other = pieces.draft(levels, TEXT[-1])
        assert again.tolist() == tokens.tolist()
        np.testing.assert_allclose(other, scores, rtol=1e-4, atol=1e-4)


@both
def test_what_it_says_rests_on_hidden_states_and_tokens(attends: bool) -> None:
    _, scores = logits(attends)
    _, other = logits(attends, [*TEXT[:-2], 11, TEXT[-1]])
    assert np.abs(scores - other).max() > 0.1 if attends else np.array_equal(scores, other)
    _, other = logits(attends, [*TEXT[:-1], 11])
    assert np.abs(scores - other).max() > 0.1
    head, elsewhere = opened(VOCAB, IDS, attends).head(), TapBuffer(["hidden"], 4, 64)
    elsewhere.write(0, {"hidden": np.ones((64, 4), np.float32)}, slice(None))
    assert head.read(TEXT, elsewhere)
    assert np.abs(head.draft(5, TEXT[-1])[1] - scores).max() > 0.1


@both
def test_a_deeper_graph_says_the_same_at_every_level_that_a_flatter_one_has(attends: bool) -> None:
    deep, scores = logits(attends)
    for levels in (1, 2, 3):
        tokens, fewer = logits(attends, levels=levels)
        assert tokens == deep[:levels]
        np.testing.assert_allclose(fewer, scores[:levels], rtol=1e-5, atol=1e-5)


def test_each_level_sees_the_token_of_the_one_before() -> None:
    """Drafting from the text with the first drafted token gives other states, but the same wish for what it ends in."""
    tokens, _ = logits(False, levels=2)
    head = opened(VOCAB, IDS, False).head()
    assert head.read(TEXT, hidden_states())
    head.noise[0, IDS.index(tokens[0])] = -100.0
    other, scores = head.draft(2, TEXT[-1])
    assert other[0] != tokens[0]
    assert np.abs(scores[1] - logits(False, levels=2)[1][1]).max() > 0.1


@both
def test_rows_that_are_forgotten_are_read_again(attends: bool) -> None:
    head, taps = opened(VOCAB, IDS, attends).head(), TapBuffer(["hidden"], 4, 64)
    rows = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    taps.write(0, {"hidden": rows}, slice(0, 8))
    assert head.read(TEXT, taps)
    before = head.draft(1, TEXT[-1])[1].copy()
    taps.cut(0)
    assert not head.read(TEXT, taps)
    taps.write(0, {"hidden": rows[20:]}, slice(0, 8))  # the same tokens after a reset: these rows count
    assert head.read(TEXT, taps)
    assert np.abs(head.draft(1, TEXT[-1])[1] - before).max() > 0.1
    taps.cut(0)
    taps.write(5, {"hidden": rows[5:]}, slice(0, 3))  # what stands before row 5 came with a saved cache
    assert head.read(TEXT, taps)
    assert head.model.length == (3 if attends else 1)


def test_a_text_that_is_too_long_is_read_from_a_place_that_its_length_gives() -> None:
    text = [int(t) for t in np.random.default_rng(2).integers(0, VOCAB, 60)]
    steps, once = (opened(VOCAB, IDS, True).head(16) for _ in range(2))
    for end in range(2, len(text) + 1, 3):
        assert steps.read(text[:end], hidden_states())
        assert steps.model.length <= 16
    assert once.read(text[:59], hidden_states())
    assert once.model.tokens == steps.model.tokens
    assert steps.draft(3, text[58])[0].tolist() == once.draft(3, text[58])[0].tolist()


@both
def test_a_text_of_one_token_has_nothing_to_read(attends: bool) -> None:
    assert len(drafter(attends).propose([5], FREE)) == 1


def test_adapters_change_what_it_says_and_belong_to_one_session() -> None:
    toy = replace(random_toy(4, VOCAB, IDS, True), adapts=True)
    made = Opened(toy, 64, (2,))
    one, other = made.head(), made.head()
    one.model.adapters["bias"][7] = 1000.0
    for head in (one, other):
        assert head.read(TEXT, hidden_states())
    assert one.draft(2, TEXT[-1])[0].tolist() == [IDS[7]] * 2
    assert other.draft(2, TEXT[-1])[0].tolist() == logits(True, levels=2)[0]


# -- what it drafts ---------------------------------------------------------------------------------------------


def test_a_head_that_is_always_right_gets_everything_accepted() -> None:
    world = TableModel(12, order=1, sharpness=4.0, seed=5)
    follows = [int(world.row([token]).argmax()) for token in range(12)]
    head = Opened(known_toy(4, follows), 256, (1, 2, 4)).head()
    made, target, tokens = HeadDrafter(head, hidden_states()), TableTarget(world), [3, 1, 4]
    made.begin(GREEDY)
    list(read_prompt(target, made, tokens, 4))
    rule, rng = make_rule(GREEDY), np.random.default_rng(0)
    for done in decode(target, made, rule, FixedLimit(4, 4), tokens, 60, rng):
        tree, path = done.outcome.tree, done.outcome.verdict.path
        assert tree.is_chain()
        assert len(path) == len(tree)
    assert target.passes == 12  # the prompt is not scored
    assert tokens[3:63] == [follows[t] for t in tokens[2:62]]


@both
def test_greedy_drafts_are_the_chain_and_the_likeliest_beside_it(attends: bool) -> None:
    chain, scores = logits(attends)
    tree = drafter(attends).propose(TEXT, DraftLimit(16, 5))
    assert len(tree) == 17
    assert chain_of(tree) == chain[: len(chain_of(tree))]
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :8]
    level, node = 0, 0
    while children := tree.children(node):
        said = tree.tokens[children].tolist()
        assert said == [IDS[place] for place in ranked[level][: len(said)]]
        row = scores[level].astype(np.float64) / 0.7
        law = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        stated = [tree.scores[child] for child in children]
        np.testing.assert_allclose(stated, np.maximum(law[ranked[level][: len(said)]], 1e-9), rtol=1e-3)
        level, node = level + 1, children[0]


@both
def test_every_limit_of_nodes_and_depth_is_kept(attends: bool) -> None:
    made = drafter(attends)
    for nodes in range(9):
        for depth in range(7):
            tree = made.propose(TEXT, DraftLimit(nodes, depth))
            assert len(tree) - 1 <= nodes
            assert tree.depths().max() <= depth
            assert len(tree) > 1 or not nodes * depth
    assert len(made.propose(TEXT, DraftLimit(64, 5))) > 17


def test_prices_say_how_much() -> None:
    made = drafter(True)
    free = made.propose(TEXT, FREE)
    worth = [1.0]
    for parent, score in zip(free.parents.tolist()[1:], free.scores[1:], strict=True):
        worth.append(worth[parent] * score)
    for price in (0.05, 0.2, 0.5, 0.9):
        made = drafter(True, asked("typical", temperature=1.0))  # nothing learnt stands between
        tree = made.propose(TEXT, DraftLimit(16, 5, node_price=price))
        chances = [1.0]
        for parent, score in zip(tree.parents.tolist()[1:], tree.scores[1:], strict=True):
            chances.append(chances[parent] * score)
        assert all(chance >= price for chance in chances)
    assert len(made.propose(TEXT, DraftLimit(16, 5, node_price=1.01))) == 1


def test_a_level_that_is_not_worth_it_is_not_drafted() -> None:
    made = drafter(True)
    made.observe(Outcome(TokenTree.root(3), Scored(np.zeros((1, VOCAB), np.float32)), Verdict((0,), 4, 0)))
    drafted: list[int] = []
    draft = made.head.draft

    def counted(levels: int, root: int) -> tuple[np.ndarray, np.ndarray]:
        drafted.append(levels)
        return draft(levels, root)

    made.head.draft = counted  # type: ignore[method-assign]
    for step in (0.0, 0.3, 0.6, 5.0):
        made.propose(TEXT, DraftLimit(16, 5, step, 0.02))
    assert drafted == [5, 3, 1, 1]


def test_depths_that_do_not_pay_are_tried_again_now_and_then() -> None:
    made, depths = drafter(True), []
    for _ in range(64):
        tree = made.propose(TEXT, DraftLimit(4, 5, 0.4, 0.2))
        depths.append(made.worth(DraftLimit(4, 5, 0.4, 0.2), 4))
        made.observe(Outcome(tree, Scored(np.zeros((len(tree), VOCAB), np.float32)), Verdict((0,), 4, 1)))
    assert set(depths[1:32]) == {1}
    assert depths[32] == 2


@both
def test_graphs_are_opened_when_they_are_asked_for(attends: bool) -> None:
    head = opened(VOCAB, IDS, attends).head()
    assert head.depths == (1, 2, 3, 5)
    assert [head.reach(levels) for levels in (1, 2, 3, 4, 5, 9)] == [1, 2, 3, 5, 5, 5]
    assert not head._bound
    assert head.read(TEXT, hidden_states())
    assert len(head.draft(4, TEXT[-1])[0]) == 5
    assert list(head._bound) == [5]
    head.open()
    assert sorted(head._bound) == [1, 2, 3, 5]


@both
def test_scores_that_are_no_numbers_draft_nothing(attends: bool) -> None:
    toy = random_toy(4, VOCAB, IDS, attends)
    toy.speaks[:, 11] = np.nan
    made = HeadDrafter(Opened(toy, 64, (3,)).head(), hidden_states())
    for request in (GREEDY, asked(temperature=1.0), asked("rejection", temperature=1.0)):
        made.begin(request)
        assert len(made.propose(TEXT, FREE)) == 1


def test_tokens_that_are_not_the_best_of_their_scores_are_not_believed() -> None:
    made = opened(VOCAB, IDS, True).head()
    made.ids = np.array(IDS) + 1
    proposer = HeadDrafter(made, hidden_states())
    for request in (GREEDY, asked("rejection", temperature=1.0)):
        proposer.begin(request)
        assert len(proposer.propose(TEXT, FREE)) == 1


# -- what a request adds ----------------------------------------------------------------------------------------


@both
def test_what_is_banned_or_favoured_is_so_in_every_level(attends: bool) -> None:
    chain = set(logits(attends)[0])
    tree = drafter(attends, asked(banned=frozenset(chain))).propose(TEXT, DraftLimit(64, 5))
    assert chain.isdisjoint(tree.tokens[1:].tolist())
    tree = drafter(attends, asked(logit_bias={IDS[4]: 1e3})).propose(TEXT, DraftLimit(4, 4))
    assert chain_of(tree) == [IDS[4]] * 4
    assert len(drafter(attends, asked(banned=frozenset(IDS))).propose(TEXT, FREE)) == 1


def test_tokens_that_were_said_are_penalised() -> None:
    """Without a cache what it says does not depend on the text before: so it can be put there."""
    first = logits(False)[0][0]
    text = [TEXT[0], first, *TEXT[2:]]
    assert logits(False, text)[0][0] == first
    for choice in ("presence_penalty", "frequency_penalty"):
        tree = drafter(False, asked(**{choice: 100.0})).propose(text, DraftLimit(64, 5))
        assert first not in tree.tokens[tree.children(0)]
    tree = drafter(False, asked(presence_penalty=-100.0)).propose(text, DraftLimit(2, 2))
    assert set(chain_of(tree)) <= set(text[1:])


def test_a_run_that_may_not_come_again_is_kept_from_the_first_level_alone() -> None:
    first = logits(False)[0][0]
    text = [TEXT[-1], first, *TEXT[2:]]
    made = drafter(False, asked(no_repeat_ngram=2))
    tree = made.propose(text, DraftLimit(64, 5))
    assert first not in tree.tokens[tree.children(0)]
    noise = made.head.noise[:, IDS.index(first)].tolist()
    assert noise == [-np.inf, 0.0, 0.0, 0.0, 0.0]


# -- noise ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_coupled_drafts_win_with_the_noise_of_the_target(attends: bool, temperature: float) -> None:
    for seed in range(4):
        made = drafter(attends, asked(seed=seed, temperature=temperature))
        drafted = chain_of(made.propose(TEXT, DraftLimit(5, 5)))
        noise = GumbelNoise(seed, 0)
        _, scores = logits(attends)
        for place, token in enumerate(drafted):
            exact = noise.at(len(TEXT) + place, np.array(IDS))
            kept = made.head.noise[place] / temperature
            np.testing.assert_allclose(kept, exact, rtol=2e-3, atol=2e-3)
            if place == 0:
                assert token == IDS[(scores[0] / temperature + exact).argmax()]
        longer = [*TEXT, drafted[0]]
        made.propose(longer, DraftLimit(5, 5))  # what was drawn for the places is not drawn again
        np.testing.assert_allclose(
            made.head.noise[0] / temperature, noise.at(len(longer), np.array(IDS)), rtol=2e-3, atol=2e-3
        )


@both
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_draws_are_those_of_the_law_that_is_stated(attends: bool, accept: str) -> None:
    made = drafter(attends, asked(accept, temperature=1.5))
    _, scores = logits(attends)
    exact = np.exp(scores[0].astype(np.float64) / 1.5)
    exact /= exact.sum()
    counts, second = Counter[int](), dict[int, np.ndarray]()
    for _ in range(1500):
        tree = made.propose(TEXT, DraftLimit(2, 2))
        first = int(tree.tokens[1])
        counts[first] += 1
        np.testing.assert_allclose(tree.dists[0].dense(VOCAB)[list(IDS)], exact, rtol=1e-3, atol=1e-6)
        assert tree.draw.tolist()[1:] == [0] * (len(tree) - 1)
        law = tree.dists[1].dense(VOCAB)
        np.testing.assert_allclose(law, second.setdefault(first, law), rtol=1e-3, atol=1e-6)
    seen = np.array([counts[token] for token in IDS]) / 1500
    noise = np.random.default_rng(0).multinomial(1500, exact, 2000) / 1500
    assert np.abs(seen - exact).sum() < np.abs(noise - exact).sum(1).max()
    assert len({tuple(np.round(law, 4)) for law in second.values()}) > 1  # the second level sees the first


def test_whether_a_draw_is_proposed_depends_on_its_law_alone() -> None:
    limit = DraftLimit(3, 3, 0.0, 0.7)
    lengths: dict[tuple[int, ...], set[int]] = {}
    made = drafter(False, asked("rejection", temperature=1.0))
    for _ in range(400):
        chain = made.propose(TEXT, limit).tokens.tolist()[1:]
        for level in range(3):
            if len(chain) >= level:
                lengths.setdefault(tuple(chain[:level]), set()).add(min(len(chain), level + 1))
    assert all(len(found) == 1 for found in lengths.values())
    assert any(found == {len(before)} for before, found in lengths.items())


def test_what_training_measured_says_how_deep_at_first() -> None:
    made = opened(VOCAB, IDS, True)
    depths = []
    for accepted in ([], [0.9, 0.9, 0.9, 0.9, 0.9], [0.5, 0.2]):
        head = made.head()
        head.model.part = msgspec.structs.replace(made.part, accepted=accepted)
        for request in (GREEDY, asked("typical", temperature=1.0)):
            proposer = HeadDrafter(head, hidden_states())
            proposer.begin(request)
            proposer._rounds = 1
            depths.append(proposer.worth(DraftLimit(16, 5, 0.2, 0.1), 5))
    assert depths == [3, 3, 5, 5, 1, 1]

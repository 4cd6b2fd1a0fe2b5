"""What each number of the policy, the purse and the prospects is there for: every one is held by a case below."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import GREEDY, ONE, World, arms, curve, passes

from paceline.runtime.contracts import Outcome, Round, Verdict
from paceline.runtime.control.controller import Controller
from paceline.runtime.control.costs import Points
from paceline.runtime.control.estimates import Arm, CostCurve, Stretch
from paceline.runtime.control.policy import Locked, Question, Settled, Trial, decide, go_on, rounds_of
from paceline.runtime.control.prospects import Prospects
from paceline.runtime.control.purse import Purse
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

PLAIN = 1.0
"""Seconds of a plain token in these worlds, judging left out."""


def known_arm(name: str, gain: float, rounds: float = 40.0, models: bool = True) -> Arm:
    """An arm that is known to run at `gain` times the speed of plain decoding, two tokens a round."""
    arm = Arm(name, 4, "small" if models else None, step=0.1, flat=0.05, catch_up=0.0)
    seconds = 2.0 * (PLAIN + 2e-5) / gain - 2 * 2e-5
    arm.weight, arm._tokens, arm._widths = rounds, 2.0 * rounds, {1: rounds}
    arm._draft = (seconds - PLAIN) * rounds
    return arm


def plain_arm() -> Arm:
    return Arm("none", 0)


def question(*known: Arm, seconds: float = 1e9, stretch: Stretch | None = None, made: int = 500) -> Question:
    prospects = Prospects(curve(), 16)
    prospects.past = made
    for arm in known:
        arm.seen = made
    return Question(prospects, list(known), made, stretch or Stretch(), seconds)


def stretch_of(rounds: int, tokens: float, seconds: float) -> Stretch:
    return Stretch(0, rounds, int(tokens), 0, 0, seconds, seconds)


# -- who is in charge ------------------------------------------------------------------------------------------


def test_the_worlds_arms_have_the_gain_that_they_are_said_to_have() -> None:
    asked = question(plain_arm())
    for gain in (0.9, 1.0, 1.3):
        assert asked.rate(known_arm("chain", gain)) * asked.known.plain_seconds() == pytest.approx(gain)


@pytest.mark.parametrize(("gain", "tried"), [(1.01, False), (1.05, True), (1.3, True)])
def test_a_drafter_must_promise_two_percent_to_be_tried_at_once(gain: float, tried: bool) -> None:
    plain, chain = plain_arm(), known_arm("chain", gain)
    chain.wait = 50
    step = decide(question(plain, chain), Settled(plain))
    assert (step.state == Trial(chain, plain)) == tried


@pytest.mark.parametrize(("gain", "left"), [(0.99, True), (0.999, False), (1.0, False)])
def test_plain_decoding_takes_over_where_it_promises_four_in_a_thousand(gain: float, left: bool) -> None:
    plain, chain = plain_arm(), known_arm("chain", gain)
    plain.wait = 50
    step = decide(question(plain, chain, seconds=0.0), Settled(chain))
    assert (step.state == Settled(plain)) == left
    if left:
        assert step.waits[-1][:2] == (chain, chain.patience)  # and it is not tried again at once


@pytest.mark.parametrize(("gain", "stays"), [(1.0, True), (0.99, True), (0.98, False)])
def test_a_drafter_without_a_model_may_listen_for_fifteen_in_a_thousand(gain: float, stays: bool) -> None:
    plain, lookup = plain_arm(), known_arm("lookup", gain, models=False)
    plain.wait = 50
    assert (decide(question(plain, lookup), Settled(lookup)).state == Settled(lookup)) == stays
    tried = question(plain, lookup, stretch=stretch_of(5, 5, 5.1))
    assert (decide(tried, Trial(lookup, plain)).state == Settled(lookup)) == stays
    # It takes over from plain decoding without a trial, once its wait is over.
    assert (decide(question(plain, lookup, seconds=0.0), Settled(plain)).state == Settled(lookup)) == stays
    lookup.wait = 10
    assert decide(question(plain, lookup, seconds=0.0), Settled(plain)).state == Settled(plain)


@pytest.mark.parametrize(
    ("rounds", "gain", "kept"), [(5, 1.06, False), (5, 1.1, True), (40, 1.06, True), (40, 1.01, False)]
)
def test_after_few_rounds_a_trial_must_promise_more(rounds: int, gain: float, kept: bool) -> None:
    """0.3 over the rounds that are known, besides the two percent."""
    plain, chain = plain_arm(), known_arm("chain", gain, rounds)
    asked = question(plain, chain, seconds=0.0, stretch=stretch_of(48, 96, 1.0))
    assert (decide(asked, Trial(chain, plain)).state == Settled(chain)) == kept


@pytest.mark.parametrize(("rounds", "gain", "kept"), [(5, 1.1, False), (5, 1.25, True), (50, 1.1, True)])
def test_against_a_drafter_that_pays_it_must_promise_more_still(rounds: int, gain: float, kept: bool) -> None:
    home, chain = known_arm("lookup", 1.5, models=False), known_arm("chain", 1.5 * gain, rounds)
    asked = question(plain_arm(), home, chain, seconds=0.0, stretch=stretch_of(48, 96, 1.0))
    assert (decide(asked, Trial(chain, home)).state == Settled(chain)) == kept


@pytest.mark.parametrize(
    ("rounds", "lost", "goes_on"), [(10, 0.1, True), (10, 0.4, False), (47, 0.1, True), (48, 0.1, False)]
)
def test_a_trial_that_seems_to_win_and_lost_next_to_nothing_goes_on(
    rounds: int, lost: float, goes_on: bool
) -> None:
    plain, chain = plain_arm(), known_arm("chain", 1.03, 5)
    asked = question(plain, chain, stretch=stretch_of(rounds, 20, 20 * (PLAIN + 2e-5) + lost))
    assert decide(asked, Trial(chain, plain)).goes_on == goes_on


def test_a_trial_that_seems_to_lose_ends_and_is_paid() -> None:
    plain, chain = plain_arm(), known_arm("chain", 0.8, 5)
    asked = question(plain, chain, seconds=5.0, stretch=stretch_of(5, 5, 5 * (PLAIN + 2e-5) + 2.0))
    step = decide(asked, Trial(chain, plain))
    assert step.state == Settled(plain)
    assert step.seconds == pytest.approx(3.0)
    assert step.verdict.startswith("off")


# -- when an arm is tried again ---------------------------------------------------------------------------------


def lose(chain: Arm) -> tuple[int, int]:
    """Wait and patience after a trial that lost."""
    plain = plain_arm()
    asked = question(plain, chain, stretch=stretch_of(5, 5, 9.0))
    (changed,) = [w for w in decide(asked, Trial(chain, plain)).waits if w[0] is chain]
    return changed[1], changed[2]


def test_waits_double_up_to_250_times_what_a_trial_risks() -> None:
    dear = known_arm("tree", 0.4, 5)
    assert Arm("chain", 8).patience == 24
    assert lose(dear) == (24, 48)
    dear.patience = 400
    assert lose(dear) == (400, 800)
    dear.patience = 3
    assert lose(dear) == (3, 48)  # never less than twice what it is at first
    dear.patience = 10**6
    risked = question(plain_arm()).known.risk(dear, plain_arm()) / (PLAIN + 2e-5)
    assert lose(dear)[1] == int(250 * risked)


def test_an_arm_that_is_kept_is_tried_again_as_soon_as_at_first() -> None:
    plain, chain = plain_arm(), known_arm("chain", 1.3)
    chain.patience = 800
    step = decide(question(plain, chain, stretch=stretch_of(5, 10, 1.0)), Trial(chain, plain))
    assert [w[2] for w in step.waits if w[0] is chain] == [24]


def test_plain_decoding_and_hopeless_arms_are_looked_at_every_128_tokens() -> None:
    control = Controller(arms("chain"), curve(), 16)
    assert control._plain.patience == control._plain.wait == 128
    hopeless = arms("tree")[0]
    hopeless.step = 50.0
    plain = plain_arm()
    assert [w[:2] for w in go_on(question(plain, hopeless), plain).waits] == [(hopeless, 128)]
    kept = decide(
        question(plain, known_arm("chain", 0.5), stretch=stretch_of(5, 5, 1.0)),
        Trial(plain, known_arm("chain", 0.5)),
    )
    assert [w[2] for w in kept.waits if w[0] is plain] == [128]


# -- how long until the next decision ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "made", "rounds"),
    [
        (Settled(plain_arm()), 500, 64),
        (Settled(plain_arm()), 10, 8),
        (Trial(plain_arm(), plain_arm()), 500, 4),
        (Settled(known_arm("chain", 1.2, 5)), 500, 4),
        (Settled(known_arm("chain", 1.2, 20)), 500, 12),
        (Trial(Arm("chain", 8, "small"), plain_arm()), 500, 5),
        (Trial(known_arm("chain", 1.2), plain_arm()), 500, 5),
        (Trial(known_arm("lookup", 1.2, models=False), plain_arm()), 500, 2),
    ],
)
def test_decisions_are_rare_where_little_can_be_lost_meanwhile(
    state: Settled | Trial, made: int, rounds: int
) -> None:
    assert rounds_of(state, made) == rounds


# -- what trials cost -------------------------------------------------------------------------------------------


def test_a_trial_is_thought_to_risk_two_rounds_and_what_it_must_read() -> None:
    known = question(plain_arm()).known
    home = plain_arm()
    tree = arms("tree")[0]
    tree.seen = known.past
    usual = known.plain_seconds()
    draft = tree.flat + 2 * tree.step
    assert known.risk(tree, home) == pytest.approx(2 * (draft + passes(3) + 2e-5 - usual))
    tree.seen = known.past - 100
    assert known.risk(tree, home) == pytest.approx(2 * (draft + passes(3) + 2e-5 - usual) + 100 * 0.002)
    fused = arms("chain,lookup")[0]
    fused.seen = known.past
    assert known.risk(fused, home) == pytest.approx(5 * fused.flat)


@pytest.mark.parametrize(("gain", "joins"), [(1.01, False), (1.03, True)])
def test_a_fusion_needs_a_member_that_pays_by_more_than_noise(gain: float, joins: bool) -> None:
    chain, lookup, fused = (
        known_arm("chain", gain),
        known_arm("lookup", 0.9, models=False),
        arms("chain,lookup")[0],
    )
    assert question(chain, lookup, fused).known.joins(fused, [chain, lookup, fused]) == joins


@pytest.mark.parametrize(("waits", "rounds"), [([500], 64), ([40], 40), ([40, 20], 20), ([3], 16)])
def test_plain_decoding_ends_when_a_drafter_may_be_tried_again(waits: list[int], rounds: int) -> None:
    assert rounds_of(Settled(plain_arm()), 500, min(waits)) == rounds


def test_a_drafter_without_a_model_has_another_chance_with_every_text() -> None:
    """It failed in one answer; in the next it is unknown again. What paid counts as two rounds."""
    world, control = World(lambda name, at: 0.0), Controller(arms("lookup", "chain"), curve(), 16)
    world.answer(control, 1000)
    lookup, chain = control._arms[:2]
    lookup.wait = lookup.patience = 900
    control.begin(GREEDY, 0)
    assert (lookup.wait, lookup.patience, lookup.weight) == (0, 24, 0)
    assert (chain.wait, chain.patience) != (0, 24)
    World(lambda name, at: 0.8 if name == "lookup" else 0.0).answer(control, 300)
    control.begin(GREEDY, 0)
    assert lookup.weight == 2


@pytest.mark.parametrize(("rounds", "listens"), [(2, True), (4, True), (40, False)])
def test_a_drafter_without_a_model_of_which_little_is_known_may_lose_more(
    rounds: float, listens: bool
) -> None:
    lookup = known_arm("lookup", 0.965, rounds, models=False)
    assert question(plain_arm(), lookup).listens(lookup) == listens


@pytest.mark.parametrize(("flat", "tried"), [(0.3, True), (0.6, False)])
def test_a_trial_without_a_model_may_risk_a_plain_token_of_an_empty_purse(flat: float, tried: bool) -> None:
    plain, lookup = plain_arm(), arms("lookup")[0]
    lookup.flat = flat  # besides what three rows take more than one
    step = go_on(question(plain, lookup, seconds=-5.0), plain)
    assert (step.state == Trial(lookup, plain)) == tried
    chain = arms("chain")[0]
    chain.step = 0.0
    assert go_on(question(plain, chain, seconds=-5.0), plain).state == Settled(plain)


def test_nodes_are_never_free() -> None:
    flat = Prospects(CostCurve(Points(16, ((1, 1.0), (17, 1.0)), ((1, 0.0),)), 17), 16)
    limit = flat.priced(known_arm("chain", 1.5), plain_arm())
    assert [limit.price(n) for n in (1, 8, 16, 40)] == [0.005] * 4


def test_the_purse_of_the_first_tokens_is_closed_after_them() -> None:
    purse = Purse()
    purse.begin(True, 1.0, 3.0)
    assert purse.seconds == 19.0
    purse.earn(63, 60.0, 5.0, 1.0)
    assert purse.seconds == 19.0
    purse.earn(64, 1.0, 0.0, 1.0)
    assert purse.seconds == pytest.approx(0.003)


def test_the_purse_earns_a_share_of_the_time_and_of_what_was_won() -> None:
    purse = Purse()
    purse.begin(False, 1.0, 0.0)
    purse.seconds = 0.0
    purse.earn(500, 100.0, 50.0, 1.0)
    assert purse.seconds == pytest.approx(0.3 + 1.0)
    purse.earn(500, 100.0, -50.0, 1.0)
    assert purse.seconds == pytest.approx(0.3 + 1.0 + 0.3)


def test_no_more_is_saved_up_than_twelve_tokens_or_the_trial_that_is_saved_for() -> None:
    purse = Purse()
    purse.begin(False, 1.0, 0.0)
    purse.earn(500, 1e6, 0.0, 1.0)
    assert purse.seconds == 12.0
    purse.saving = 40.0
    purse.earn(500, 1e6, 0.0, 1.0)
    assert purse.seconds == 40.0
    plain, dear = plain_arm(), known_arm("chain", 1.5)
    dear.catch_up = 0.1
    asked = question(plain, dear, seconds=12.0)
    dear.seen = 0
    asked.made = 10
    saving = go_on(asked, plain).saving
    assert saving == pytest.approx(asked.known.risk(dear, plain))
    assert saving is not None
    assert saving > 50.0


# -- answers ----------------------------------------------------------------------------------------------------


def test_the_first_answer_is_expected_to_have_128_tokens() -> None:
    """What the chain would win in 128 tokens is more than it costs to read this prompt, what it wins in 32 is less."""
    control = Controller(arms("chain"), curve(), 16)
    chain = control._arms[0]
    gain = PLAIN - 1 / control._known.rate(chain)
    owed = int(80 * gain / chain.catch_up)
    control.begin(replace(GREEDY, prompt_length=owed), 0)
    assert control._purse.seconds == pytest.approx(16.0 + owed * chain.catch_up, rel=0.01)


def test_a_plain_pass_that_was_held_up_says_nothing_of_the_others() -> None:
    """One of a hundred times the seconds among 64: what is thought of plain decoding stays as it was."""
    world, control = World(lambda name, at: 0.0, noise=0.0), Controller(arms("chain"), curve(), 16)
    world.answer(control, 600)
    before = control._known.curve.seconds(0, 600)
    control.begin(GREEDY, 0)
    one = Outcome(TokenTree.root(0), ONE, Verdict((0,), 0, 0))
    for number in range(128):
        assert control.limit(500).depth == 0
        control.learn(Round(one, 0.0, 100.0 if number == 70 else 1.0, 0.0))
    assert control._known.curve.seconds(0, 600) == pytest.approx(before, rel=0.01)


def test_one_short_answer_among_long_ones_does_not_change_what_is_expected() -> None:
    world, control = World(lambda name, at: 0.8), Controller(arms("chain"), curve(), 16)
    for _ in range(8):
        world.answer(control, 900)
    world.answer(control, 20)
    world.ran.clear()
    world.answer(control, 40, replace(GREEDY, prompt_length=20_000))
    assert world.ran.get("chain", 0) > world.ran.get("none", 0)


def test_where_the_clock_may_not_choose_prices_and_depth_are_fixed() -> None:
    request = replace(GREEDY, accept="typical", sampling=Sampling(temperature=1.0))
    control = Controller(arms("chain", "tree"), curve(), 16)
    control.begin(request, 0)
    assert isinstance(control._state, Locked)
    limit = control.limit(50)
    assert (limit.nodes, limit.depth, limit.step_price, limit.node_price) == (16, 4, 0.3, 0.1)


def test_what_was_learnt_long_ago_counts_as_twelve_rounds() -> None:
    world, control = World(lambda name, at: 0.8), Controller(arms("chain"), curve(), 16)
    world.answer(control, 2000)
    control.begin(GREEDY, 0)
    assert control._arms[0].weight == 12


def test_half_of_what_is_known_of_an_arm_is_of_its_last_seventeen_rounds() -> None:
    arm = Arm("chain", 8, "small")
    for tokens in (1, 3):
        for _ in range(500 if tokens == 1 else 17):
            arm.learn(tokens, 2, 0.1, 3)
    assert arm.tokens == pytest.approx(2.0, abs=0.05)

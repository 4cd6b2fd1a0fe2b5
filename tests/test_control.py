"""The controller in simulated worlds, and what it promises whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from worlds import GREEDY, World, arms, best_fixed, curve

from paceline.memory.room import Room
from paceline.runtime.contracts import DraftLimit, Outcome, Round
from paceline.runtime.control.controller import Controller
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.auto import Auto
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

NAMES = ("chain", "lookup", "tree", "chain,lookup")
seeds = pytest.mark.parametrize("seed", range(6))


def controller(*names: str, off: bool = True) -> Controller:
    return Controller(arms(*(names or NAMES)), curve(), 16, off)


def after_first(times: list[float]) -> float:
    """Seconds of what follows the first 64 tokens."""
    return times[-1] - times[63]


# -- never slower ----------------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.1, 0.2])
def test_where_every_drafter_fails_the_loss_is_at_most_two_percent(seed: int, chance: float) -> None:
    world, control = World(lambda name, at: chance, seed=seed), controller()
    taken = sum(after_first(world.answer(control, 576)) for _ in range(4))
    assert taken <= 1.02 * 4 * 512


@pytest.mark.parametrize("chance", [0.6, 0.75, 0.9])
def test_where_one_drafter_is_good_nearly_all_of_its_speed_is_had(chance: float) -> None:
    taken = []
    for seed in range(6):
        world = World(lambda name, at: chance if "chain" in name else 0.05, seed=seed)
        control = controller()
        world.answer(control, 100)
        taken.append(sum(after_first(world.answer(control, 576)) for _ in range(4)))
        assert control.chosen.startswith("chain")
    best = 4 * 512 * best_fixed(["chain"], lambda name: chance)
    assert best >= 0.95 * sum(taken) / len(taken)
    assert best >= 0.9 * max(taken)


@seeds
def test_trials_cost_at_most_one_percent_after_the_first_tokens(seed: int) -> None:
    world, control = World(lambda name, at: 0.05, seed=seed, noise=0.0), controller()
    total = sum(after_first(world.answer(control, 2000)) for _ in range(3))
    assert world.lost <= 0.01 * total
    assert world.ran["chain"] > 0


def test_trials_get_rarer_while_an_arm_loses() -> None:
    world, control = World(lambda name, at: 0.0), controller("tree")
    waits = []
    for _ in range(4):
        world.answer(control, 400)
        waits.append(control._arms[0].patience)
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * 24
    assert world.ran["tree"] < 0.05 * world.ran["none"]


@seeds
def test_a_text_that_turns_hostile_and_back_costs_little(seed: int) -> None:
    def chance(name: str, at: int) -> float:
        return 0.8 if "chain" in name and at // 400 % 2 == 0 else 0.02

    world, control = World(chance, seed=seed), controller()
    times = world.answer(control, 2000)
    best = best_fixed(["chain"], lambda name: 0.8)
    good, bad = 3 * 400 * best, 2 * 400
    assert times[-1] <= 1.4 * (good + bad)


@seeds
def test_a_drafter_that_is_good_at_first_and_never_again_is_dropped(seed: int) -> None:
    world = World(lambda name, at: 0.9 if at < 100 else 0.0, seed=seed)
    times = world.answer(controller(), 1200)
    assert times[-1] - times[399] <= 1.02 * 800


@seeds
@pytest.mark.parametrize("slow", [3.0, 0.4])
def test_a_machine_that_changes_its_speed_changes_no_choice(seed: int, slow: float) -> None:
    world = World(
        lambda name, at: 0.75 if "chain" in name else 0.02, lambda at: slow if at > 400 else 1.0, seed=seed
    )
    control = controller()
    times = world.answer(control, 1200)
    best = best_fixed(["chain"], lambda name: 0.75)
    assert (times[-1] - times[499]) <= 700 * best * slow / 0.9
    assert control._known.curve.drift == pytest.approx(slow, rel=0.35)


@seeds
def test_many_short_answers_lose_little_too(seed: int) -> None:
    world, control = World(lambda name, at: 0.0, seed=seed, noise=0.0), controller()
    world.answer(control, 100)
    taken = sum(world.answer(control, 10)[-1] for _ in range(40))
    assert taken <= 1.02 * 400


def with_prompt(length: int) -> Request:
    return replace(GREEDY, prompt_length=length)


def catching_up(world: World, control: Controller, prompt: int, tokens: int) -> float:
    """Seconds of an answer to a long prompt, which a draft model reads when it is first asked."""
    control.begin(with_prompt(prompt), 0)
    owed = {arm.name: control._known.owed(arm) for arm in control._arms}
    before = world.ran.copy()
    time = world.answer(control, tokens, with_prompt(prompt))[-1]
    chain = any(world.ran.get(name, 0) > before.get(name, 0) for name in ("chain", "chain,lookup"))
    return time + owed["chain"] * chain


def test_a_short_answer_to_a_long_prompt_does_not_wait_for_a_draft_model_to_read_it() -> None:
    world, control = World(lambda name, at: 0.8 if "chain" in name else 0.0), controller()
    for _ in range(8):
        world.answer(control, 20)
    assert control.chosen.startswith("chain")
    assert catching_up(world, control, 4000, 20) <= 1.1 * 20
    for _ in range(8):
        world.answer(control, 900)
    assert catching_up(world, control, 4000, 900) <= 0.8 * 900


@seeds
def test_a_long_answer_after_short_ones_gets_its_drafter_back(seed: int) -> None:
    world, control = World(lambda name, at: 0.85 if "chain" in name else 0.0, seed=seed), controller()
    for _ in range(8):
        world.answer(control, 20)
    world.ran.clear()
    world.answer(control, 1000, with_prompt(2000))
    assert world.ran.get("chain", 0) + world.ran.get("chain,lookup", 0) > 2 * world.ran.get("none", 0)


def test_an_arm_whose_trial_costs_much_is_saved_up_for() -> None:
    good = [0.0]
    world = World(lambda name, at: good[0], noise=0.0)
    control = controller("chain")
    world.answer(control, 300)
    good[0] = 0.9
    world.ran.clear()
    for _ in range(30):
        control._arms[0].seen = 0
        world.answer(control, 600, with_prompt(12_000))  # reading it takes 24 plain passes
    assert world.ran.get("chain", 0) > 0


@seeds
def test_a_fusion_that_is_a_little_worse_than_plain_decoding_does_not_stay(seed: int) -> None:
    world = World(lambda name, at: 0.35, seed=seed, noise=0.01)
    control = Controller(arms("chain,lookup"), curve(), 16)
    world.answer(control, 300)
    assert sum(after_first(world.answer(control, 1000)) for _ in range(3)) <= 1.02 * 3 * 936


def test_a_stall_of_the_machine_does_not_end_a_good_drafter() -> None:
    world = World(lambda name, at: 0.85 if "chain" in name else 0.0, noise=0.0)
    world.slow = lambda at: 40.0 if at in (2, 3) else 1.0
    times = world.answer(controller(), 400)
    assert times[-1] - times[63] < 0.75 * 336


def test_arms_over_one_draft_model_know_that_it_has_read_the_text() -> None:
    world, control = World(lambda name, at: 0.8 if "chain" in name else 0.0), controller()
    world.answer(control, 400)
    chain, fused = (next(a for a in control._arms if a.name == n) for n in ("chain", "chain,lookup"))
    assert chain.seen == fused.seen > 300


# -- what is chosen --------------------------------------------------------------------------------------------


def test_a_drafter_that_cannot_pay_even_at_its_best_is_not_tried() -> None:
    world, slow = World(lambda name, at: 0.9), arms("tree")
    slow[0].step = 5.0
    world.answer(Controller(slow, curve(), 16), 400)
    assert set(world.ran) == {"none"}


@pytest.mark.parametrize(("good", "tried"), [(0.0, False), (0.7, True)])
def test_a_fusion_is_tried_only_where_one_of_its_parts_pays(good: float, tried: bool) -> None:
    world = World(lambda name, at: 0.0 if name == "lookup" else good)
    world.answer(controller("chain", "lookup", "chain,lookup"), 1500)
    assert ("chain,lookup" in world.ran) == tried


def test_the_next_answer_starts_with_what_paid_and_remembers_no_phase() -> None:
    world, control = World(lambda name, at: 0.85 if name == "chain" else 0.0), controller("chain")
    world.answer(control, 300)
    old = control.trace
    world.ran.clear()
    world.answer(control, 300)
    assert control.trace is not old
    assert world.ran["chain"] > 5 * world.ran.get("none", 0)


def test_a_single_drafter_is_never_switched_off_but_drafts_little_where_it_fails() -> None:
    world, control = World(lambda name, at: 0.05), controller("chain", off=False)
    times = world.answer(control, 400)
    assert set(world.ran) == {"chain"}
    assert times[-1] < 1.2 * 400
    good = World(lambda name, at: 0.9)
    assert good.answer(controller("chain", off=False), 400)[-1] < 250


def test_prices_rise_with_the_curve_and_with_the_speed() -> None:
    control = controller("chain", off=False)
    World(lambda name, at: 0.9).answer(control, 200)
    limit = control.limit(100)
    assert limit.priced
    assert limit.price(1) < limit.price(8) <= limit.price(16) == limit.price(99)
    assert 0.1 < limit.step_price < 0.4


# -- borders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["rejection", "block", "typical"])
def test_where_the_draft_changes_the_tokens_the_clock_decides_nothing(accept: str) -> None:
    request = replace(GREEDY, accept=accept, sampling=Sampling(temperature=1.0))
    limits = []
    for slow in (1.0, 9.0):
        world, control = World(lambda name, at: 0.0, lambda at, s=slow: s), controller()
        World(lambda name, at, p=slow / 18: p).answer(control, 100)
        world.answer(control, 200, request)
        limits.append(control.limit(50))
        assert set(world.ran) == {"chain"}
    assert limits[0] == limits[1]


class Counted(Plain):
    """Counts how often it is run and fed."""

    def __init__(self) -> None:
        self.ran = self.fed = 0

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        self.ran += 1
        return super().propose(tokens, limit)

    def observe(self, outcome: Outcome) -> None:
        self.fed += 1


def test_a_drafter_that_is_off_is_neither_run_nor_fed() -> None:
    drafters = {name: Counted() for name in ("none", "chain")}
    auto = Auto(drafters)
    world, control = World(lambda name, at: 0.0), Controller(arms("chain"), curve(), 16, switch=auto.switch)
    step = control.learn

    def learn(done: Round) -> None:
        auto.observe(done.outcome)
        step(done)
        auto.propose([1], control.limit(9))

    control.learn = learn  # type: ignore[method-assign]
    world.answer(control, 1000)
    assert drafters["chain"].ran <= world.ran["chain"] + 1 < 100
    assert drafters["chain"].fed == world.ran["chain"]
    assert drafters["none"].fed == world.ran["none"]


def test_off_asks_for_nothing() -> None:
    world, control = World(lambda name, at: 0.0), controller("chain")
    world.answer(control, 380)
    assert control._state.arm.name == "none"
    assert control.limit(100) == DraftLimit(0, 0)


def test_no_clock_at_all_breaks_nothing() -> None:
    world = World(lambda name, at: 0.5, lambda at: 0.0)
    assert len(world.answer(controller(), 300)) == 300


@pytest.mark.parametrize(
    "make", [lambda: FixedLimit(16, 6), lambda: controller("chain", off=False), controller]
)
def test_the_limit_keeps_to_the_room_and_the_ceiling(make: type) -> None:
    control = make()
    for ceiling in (
        None,
        Room(nodes=3, depth=2),
        Room(nodes=0, depth=0, models=False),
        Room(nodes=8, depth=8, models=False),
    ):
        control.ceiling = ceiling
        control.begin(GREEDY, 0)
        for room in (9, 2, 1, 0, -1):
            limit = control.limit(room)
            assert limit.depth <= max(room, 0)
            assert limit.depth > 0 or limit.nodes == 0
            if ceiling is not None:
                assert limit.nodes <= ceiling.nodes
                assert limit.depth <= ceiling.depth


def test_without_memory_for_a_draft_model_only_others_run() -> None:
    world, control = World(lambda name, at: 0.9, seed=1), controller()
    control.ceiling = Room(nodes=8, depth=8, models=False)
    world.answer(control, 300)
    assert set(world.ran) <= {"none", "lookup"}
    single = controller("chain", off=False)
    single.ceiling = Room(nodes=8, depth=8, models=False)
    single.begin(GREEDY, 0)
    assert single.limit(9) == DraftLimit(0, 0)


def test_on_the_last_rung_nothing_is_run_at_all() -> None:
    world, control = World(lambda name, at: 0.9, seed=1), controller()
    world.answer(control, 100)
    control.ceiling = Room(nodes=0, depth=0, models=False)
    world.ran.clear()
    world.answer(control, 300)
    assert set(world.ran) <= {"none", "chain", "chain,lookup"}
    assert world.ran["none"] >= 299


def test_the_fixed_limit_never_drafts_past_the_room() -> None:
    control = FixedLimit(16, 6)
    assert control.limit(100) == DraftLimit(16, 6)
    assert control.limit(2).depth == 2
    assert control.limit(0) == DraftLimit(0, 0)


# -- the trace -------------------------------------------------------------------------------------------------


def test_the_trace_covers_every_token_and_says_why() -> None:
    world, control = World(lambda name, at: 0.8 if name == "chain" else 0.0), controller("chain", "lookup")
    world.answer(control, 500)
    said = control.trace.as_dict()
    assert sum(said["tokens_by_drafter"].values()) >= 500
    ends = [phase["tokens"] for phase in said["phases"]]
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ends))
    lines = control.trace.lines()
    assert any("tried chain, depth" in line and "kept" in line for line in lines)
    assert any("lookup" in line and "next try in" in line for line in lines)


def test_the_trace_stays_short() -> None:
    world = World(lambda name, at: 0.9 if at // 60 % 2 else 0.0)
    control = controller("chain", "lookup")
    world.answer(control, 9000)
    assert len(control.trace.lines()) <= 33
    assert "earlier changes" in control.trace.lines()[0]

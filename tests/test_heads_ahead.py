"""Heads that draft on beside the target's pass, from their own states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
from command_line import call
from draft_models import VOCAB
from going_on import Inline, said
from law_rounds import GREEDY
from law_subjects import hidden_states
from rough_worker import endure
from test_branches import Killing
from toy_heads import Opened, known_toy

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.runtime.contracts import DraftLimit, Early, Outcome, Scored, Verdict
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.drafters.head_ahead import HeadAhead
from paceline.runtime.drafters.head_window import Window
from paceline.runtime.drafters.names import goes_beside
from paceline.runtime.drafters.reuse import Reuse
from paceline.runtime.manifest import read_manifest
from paceline.runtime.model.head import Head
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.tree import TokenTree

FOLLOWS = (1, 2, 3, 4, 5, 0)
"""What the head of these tests says behind each token."""
TEXT = [3, 1, 4, 0]
LIMIT = DraftLimit(3, 3)
PROMPTS = ["Once upon a time, a dog", "One day, the princess", "The robot was sad"]
SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=1), Sampling()]


def sure_head() -> Head:
    return Opened(known_toy(4, FOLLOWS), 4096, (1, 3, 8), "fp32", ()).head(None)


def drafting(looks: int, branches: str = "exit", request: Request = GREEDY) -> tuple[HeadAhead, Inline]:
    head, inline = sure_head(), Inline(looks)
    serial = HeadDrafter(head, hidden_states())
    ahead = HeadAhead(serial, head, hidden_states(), VOCAB, inline, branches)  # type: ignore[arg-type]
    ahead.begin(request)
    return ahead, inline


def chain_of(token: int, count: int) -> list[int]:
    """What follows a token, by the head."""
    found = list[int]()
    for _ in range(count):
        token = FOLLOWS[token]
        found.append(token)
    return found


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("odd", [0, 2, 5])
def test_a_correction_that_the_target_says_early_is_drafted_on(place: int, odd: int) -> None:
    """One that the head holds for impossible: what is proposed then is what it says behind that."""
    ahead, inline = drafting(6)
    tree = ahead.propose(TEXT, LIMIT)
    assert tree.tokens.tolist() == [TEXT[-1], *chain_of(TEXT[-1], 3)]
    following = [*tree.tokens[1:].tolist(), -1]
    inline.early = said([odd if at == place or at == 3 else following[at] for at in range(4)])
    inline.begin(tree)
    text = [*TEXT, *tree.tokens[1 : 1 + place].tolist(), odd]
    again = ahead.propose(text, LIMIT)
    if place < 3 and following[place] == odd:  # that is no correction: the text goes on
        assert inline.tally.hits == 0
        return
    assert (inline.tally.hits, inline.tally.misses, inline.tally.foreseen) == (1, 0, 1)
    assert again.tokens.tolist() == [odd, *chain_of(odd, 3)]


@pytest.mark.parametrize("branches", ["exit", "weight", "fan", "window"])
def test_the_way_that_is_accepted_whole_is_drafted_on_first(branches: str) -> None:
    ahead, inline = drafting(1, branches)
    tree = ahead.propose(TEXT, LIMIT)
    inline.begin(tree)
    text = [*TEXT, *chain_of(TEXT[-1], 4)]
    assert ahead.propose(text, LIMIT).tokens.tolist() == [text[-1], *chain_of(text[-1], 3)]
    assert inline.tally.hits == 1


def test_what_was_not_looked_at_is_drafted_anew() -> None:
    ahead, inline = drafting(1)
    inline.begin(ahead.propose(TEXT, LIMIT))
    assert ahead.propose([*TEXT, 5], LIMIT).tokens.tolist() == [5, *chain_of(5, 3)]
    assert (inline.tally.hits, inline.tally.misses) == (0, 1)


def test_a_branch_ends_where_the_graphs_do() -> None:
    """Of eight levels four are the way: four are left."""
    ahead, inline = drafting(1)
    inline.begin(ahead.propose(TEXT, LIMIT))
    text = [*TEXT, *chain_of(TEXT[-1], 4)]
    tree = ahead.propose(text, DraftLimit(8, 8))
    assert inline.tally.hits == 1
    assert int(tree.depths().max()) == 4
    assert set(chain_of(text[-1], 4)) < set(tree.tokens.tolist())


def test_a_way_out_of_the_heads_tokens_is_left() -> None:
    head, inline = Opened(known_toy(4, FOLLOWS), 4096, (1, 3, 8), "fp32", ()).head(None), Inline(6)
    head.ids = np.array([0, 1, 2, 3, 4, 9])
    ahead = HeadAhead(HeadDrafter(head, hidden_states()), head, hidden_states(), 12, inline, "exit")
    ahead.begin(GREEDY)
    tree = ahead.propose(TEXT, LIMIT)
    inline.early = Early(np.array([[5], [5], [5], [5]]), np.zeros((4, 1), np.float32))
    inline.begin(tree)
    ahead.propose([*TEXT, 5], LIMIT)
    assert (inline.tally.hits, inline.tally.misses, inline.tally.foreseen) == (0, 1, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_noise_is_as_it_was_after_a_way_was_forced(temperature: float) -> None:
    request = Request(Sampling(temperature=temperature), "coupled", 3, 0, 1)
    ahead, inline = drafting(6, "fan", request)
    tree = ahead.propose(TEXT, LIMIT)
    inline.begin(tree)
    assert inline.tally.passes > 2
    noise = ahead._head.noise
    for level in range(8):
        row = GumbelNoise(3, 0).roughly(len(TEXT) + level, np.arange(VOCAB)) if temperature else 0
        assert np.abs(noise[level] - row).max() < 2e-3


def test_what_was_drafted_on_is_learnt_of_apart() -> None:
    ahead, inline = drafting(1)
    before = ahead._serial._learnt._new, ahead._reused._new

    def ask(text: list[int]) -> None:
        tree = ahead.propose(text, LIMIT)
        inline.begin(tree)
        logits = np.zeros((len(tree), VOCAB), np.float32)
        ahead.observe(Outcome(tree, Scored(logits), Verdict(tuple(range(4)), FOLLOWS[tree.tokens[3]], 4)))

    ask(TEXT)
    assert (ahead._serial._learnt._new, ahead._reused._new) == (before[0] + 3, before[1])
    ask([*TEXT, *chain_of(TEXT[-1], 4)])
    assert inline.tally.hits == 1
    assert (ahead._serial._learnt._new, ahead._reused._new) == (before[0] + 3, before[1] + 3)


def test_work_may_end_at_any_line() -> None:
    """Of ours and of what it calls: the next proposal is the head's own, over noise that forces nothing."""
    lines, at = 10**9, 1
    while at <= lines:
        ahead, inline = drafting(3, "fan")
        tree = ahead.propose(TEXT, LIMIT)
        killing = Killing(at)
        killing.run(lambda told=inline, tree=tree: told.begin(tree))  # type: ignore[misc]
        if killing.lines < at:
            break
        for text in ([*TEXT, 5], [*TEXT, 5, 2]):
            assert ahead.propose(text, LIMIT).tokens.tolist() == [text[-1], *chain_of(text[-1], 3)]
        at += 7
    assert at > 200


def window(branches: str = "weight") -> Window:
    """A root with two children, the first of which has one."""
    tree = TokenTree.picked([0, 1, 2, 3], [-1, 0, 0, 1], ["", *["a"] * 3], [1.0, 0.6, 0.3, 0.5])
    return Window(tree, branches)  # type: ignore[arg-type]


def test_a_branch_is_worth_the_chance_that_the_text_goes_through_it() -> None:
    found = window()
    assert found.first() == (1, 3)
    found.done.add((1, 3))
    found.say((), [(1, 0.6), (4, 0.2), (2, 0.1)])
    found.say((1,), [(3, 0.5), (5, 0.4)])
    found.say((1, 3), [(4, 0.9)])
    found.say((2,), [(4, 0.5), (5, 0.4)])
    order = list[tuple[int, ...]]()
    while (best := found.next(8)) is not None:
        order.append(best[0])
        found.done.add(best[0])
    # .3 * .9, .6 * .4, .2, .3 * .5, .3 * .4: what is looked at itself is none.
    assert order == [(1, 3, 4), (1, 5), (4,), (2, 4), (2, 5)]


def test_a_node_of_which_nothing_was_said_is_asked_about() -> None:
    found = window()
    found.say((), [(1, 0.6), (2, 0.1)])
    found.say((1,), [(3, 1.0)])
    found.done.add((1, 3))
    assert found.next(8) == ((2,), pytest.approx(0.15))
    assert found.next(2) is None


def test_what_the_target_says_counts_in_place_of_estimates() -> None:
    found = window()
    for way in ((), (1,), (2,), (1, 3)):
        found.say(way, [(5, 0.9)])
    early = Early(
        np.array([[2, 4], [5, -1], [4, -1], [5, -1]]),
        np.log(np.array([[0.7, 0.2], [0.9, 1e-9], [0.8, 1e-9], [0.9, 1e-9]], np.float32)),
        np.array([0.1, 0.1, 0.2, 0.1], np.float32),
    )
    found.hear(early)
    assert found.next(8) == ((2, 4), pytest.approx(0.56))
    assert found.names((2, 4))
    assert not found.names((2, 5))


@pytest.mark.parametrize(("branches", "ways"), [("fan", 3), ("window", 0)])
def test_other_branches_go_by_rank_or_not_at_all(branches: str, ways: int) -> None:
    found = window(branches)
    for way in ((), (1,), (2,), (1, 3)):
        found.say(way, [(at, 1e-3) for at in range(6, 12)])
    taken = list[tuple[int, ...]]()
    while (best := found.next(8)) is not None:
        taken.append(best[0])
        found.done.add(best[0])
    assert len(taken) == 4 * ways


def test_what_is_there_is_used_where_it_is_worth_more_for_its_time() -> None:
    """Two tokens in a hundredth of a second: a draft of as long is worth two."""
    reuse = Reuse()
    assert reuse.pays(0.1, 5.0)
    for _ in range(30):
        reuse.drafted(0.005)
        reuse.grew(2, 0.01)
    assert reuse.pays(2.1, 3.0)
    assert not reuse.pays(1.9, 3.0)
    reuse.drafted(10.0)
    assert not reuse.pays(1.5, 3.0)


HEAD = Path(__file__).resolve().parents[1] / "heads" / "storyteller"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storyteller in two graphs, with its head."""
    pytest.importorskip("onnx_ir")
    from paceline.export.skips.halving import add_split

    place = tmp_path_factory.mktemp("heads")
    made = call("export", embedded_bundle(), place / "teller", "--head", f"eagle3={HEAD}", "-q")
    assert made.code == 0, made.err
    add_split(place / "teller", 5, place / "split")
    return place / "split"


@pytest.mark.export
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "coupled", "usual"])
@pytest.mark.parametrize("branches", ["exit", "weight", "fan", "window"])
@pytest.mark.parametrize("drafter", ["eagle3", "eagle3,lookup"])
def test_answers_are_plain_decodings(bundle: Path, drafter: str, branches: str, sampling: Sampling) -> None:
    ask = {"sampling": sampling, "seed": 5, "max_tokens": 40}
    with load(drafter="none") as plain:
        expected = [plain.generate(prompt, **ask).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]
    with load(bundle, drafter=drafter, threads=2, mirror="on", mirror_branches=branches) as session:  # type: ignore[arg-type]
        answers = [session.generate(prompt, **ask).read() for prompt in PROMPTS]  # type: ignore[arg-type]
    assert [answer.tokens for answer in answers] == expected
    tallies = [answer.stats.beside for answer in answers]
    assert sum(tally.passes for tally in tallies if tally is not None) > 0
    assert not any(tally.failure for tally in tallies if tally is not None)


@pytest.mark.export
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_no_delay_and_no_failure_changes_an_answer(bundle: Path, sampling: Sampling) -> None:
    done = endure(bundle, PROMPTS, sampling, 150, 0.05, drafter="eagle3")
    assert done.hits > 5
    assert done.killed


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_ten_thousand_rounds_of_delays_and_failures(bundle: Path, sampling: Sampling) -> None:
    done = endure(bundle, PROMPTS, sampling, 10_000, 0.02, drafter="eagle3")
    assert done.hits > 300
    assert done.killed > 50


@pytest.mark.export
def test_heads_whose_levels_know_nothing_of_another_stay_behind(bundle: Path) -> None:
    import msgspec

    parts = read_manifest(bundle).drafters
    assert goes_beside("eagle3", parts)
    product = {"eagle3": msgspec.structs.replace(parts["eagle3"], product=True)}
    assert not goes_beside("eagle3", product)
    assert not goes_beside("auto", product)
    assert goes_beside("auto", {"eagle3": parts["eagle3"]})

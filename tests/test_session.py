from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
from storybook import DRAFTERS, answer, requests, session

from paceline.embedded import embedded_bundle
from paceline.runtime.contracts import Outcome
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.events import Event
from paceline.runtime.loading import load
from paceline.runtime.manifest import BundleError
from paceline.runtime.model.model import Model
from paceline.runtime.request import Sampling
from paceline.runtime.text.stream import TextStream

ASK = {"role": "user", "content": "Tell me a story about a cat and a big cake."}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    session().reset()
    session().set_drafter("chain")
    yield
    session().set_drafter("none")


def text_of(**choices: object) -> str:
    choices = {"sampling": Sampling(), **choices}
    return "".join(e.text for e in session().chat([ASK], **choices))  # type: ignore[arg-type]


def test_the_second_turn_reuses_the_cache_and_says_what_a_fresh_session_says() -> None:
    first = text_of(max_tokens=40)
    talk = [
        ASK,
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Tell me another story."},
    ]
    warm = [e.token for e in session().chat(talk, max_tokens=40, seed=5)]
    assert session().stats.reused_tokens > 30
    session().reset()
    cold = [e.token for e in session().chat(talk, max_tokens=40, seed=5)]
    assert session().stats.reused_tokens == 0
    assert warm == cold


def test_an_answer_that_is_abandoned_leaves_a_session_that_works() -> None:
    whole = text_of(max_tokens=40)
    stream = session().chat([ASK], max_tokens=40)
    for _ in range(5):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert text_of(max_tokens=40) == whole


@pytest.mark.parametrize(
    "place", ["_target.score", "_target.commit", "_drafting.drafter.propose", "_drafting.drafter.observe"]
)
def test_an_exception_in_the_middle_of_a_round_leaves_a_session_that_works(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text_of(max_tokens=40)
    session().reset()
    holder, _, method = place.rpartition(".")
    owner = attrgetter(holder)(session())
    right, calls = getattr(owner, method), [0]

    def failing(*arguments: object) -> object:
        calls[0] += 1
        result = right(*arguments)
        if calls[0] == 4:
            raise OSError("the device went away")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, failing)
        with pytest.raises(OSError, match="went away"):
            text_of(max_tokens=40)
    assert text_of(max_tokens=40) == whole


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("drafter", ["none", "chain", "tree", "recycle"])
def test_max_tokens_is_met_exactly(limit: int, drafter: str) -> None:
    session().set_drafter(drafter)
    events = list(session().chat([ASK], max_tokens=limit, sampling=Sampling()))
    assert sum(e.token is not None for e in events) == limit
    assert events[-1].finish_reason == "length"


def test_nothing_follows_the_end_of_sequence_inside_an_accepted_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what the rounds brought, an answer has all up to the first end of sequence; some rounds bring more."""
    ends, beyond = set(session().bundle.generation.eos_ids), 0
    assert ends
    push, brought = TextStream.push, list[int]()

    def seen(self: TextStream, outcome: Outcome, *more: object) -> list[Event]:
        brought.extend(outcome.tokens)
        return push(self, outcome, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(TextStream, "push", seen)
    for drafter in DRAFTERS:
        session().set_drafter(drafter)
        for prompt in requests(6):
            brought.clear()
            tokens = answer(prompt)
            end = next((place for place, token in enumerate(brought) if token in ends), len(brought))
            assert tokens == brought[:end]
            beyond += len(brought[end:]) > 1
    assert beyond > 0


@pytest.mark.parametrize("drafter", ["none", "chain", "lookup"])
def test_a_stop_string_that_spans_tokens_ends_the_answer_before_itself(drafter: str) -> None:
    session().set_drafter(drafter)
    whole = text_of(max_tokens=60)
    stop = whole[40:52]
    events = list(session().chat([ASK], max_tokens=60, stop=[stop], sampling=Sampling()))
    told = "".join(e.text for e in events)
    assert told == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"
    tokens = [e.token for e in events if e.token is not None]
    assert session().text.decode(tokens).startswith(told)
    assert stop not in session().text.decode(tokens)


def test_the_context_limit_ends_an_answer_with_length() -> None:
    with load(embedded_bundle(), drafter="chain", context=48, threads=1) as small:
        ids = small.text.encode("Once upon a time")
        endless = Sampling(banned=frozenset(small.bundle.generation.eos_ids))
        events = list(small.generate(ids, max_tokens=500, sampling=endless))
        assert events[-1].finish_reason == "length"
        assert sum(e.token is not None for e in events) == 48 - len(ids)
        with pytest.raises(ValueError, match="context holds 48"):
            small.generate("word " * 100)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"accept": "magic"}, "coupled"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_a_wrong_argument_is_refused_at_once_by_name(choices: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session().chat([ASK], **choices)  # type: ignore[arg-type]


def test_an_empty_prompt_and_an_unknown_drafter_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        session().generate("")
    with pytest.raises(ValueError, match="empty"):
        session().chat([])
    with pytest.raises(ValueError, match="lookup, suffix, recycle"):
        session().set_drafter("medusa")
    with pytest.raises(BundleError, match="no such folder"):
        load("no/such/folder")


def test_statistics_add_up() -> None:
    events = list(session().chat([ASK], max_tokens=50, seed=1))
    stats = session().stats
    assert stats.generated_tokens == sum(e.token is not None for e in events)
    assert stats.accepted == sum(stats.accepted_by_depth) == sum(stats.accepted_by_source.values())
    assert stats.accepted <= stats.tested == sum(stats.tested_by_depth)
    assert stats.rounds <= stats.generated_tokens + 1 <= stats.accepted + stats.rounds + 1
    assert sum(e.source == "chain" for e in events) <= stats.accepted
    assert 0 < stats.seconds["verify"] < stats.seconds["total"]


def test_a_drafter_that_needs_what_the_target_does_not_give_is_refused_naming_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PromptLookup, "needs", frozenset({"hidden.3"}))
    monkeypatch.setattr(session(), "_draftings", {})
    with pytest.raises(ValueError, match=r"'lookup' reads hidden\.3 .* gives no taps"):
        session().set_drafter("lookup")


def test_more_threads_than_the_machine_can_use_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="100000 threads"):
        load(embedded_bundle(), threads=100_000)


def test_two_answers_of_one_session_at_once_are_refused_not_mixed() -> None:
    whole = text_of(max_tokens=30)
    first, second = (session().chat([ASK], max_tokens=30, sampling=Sampling()) for _ in range(2))
    next(first)
    next(second)
    with pytest.raises(ValueError, match="given up"):
        list(first)
    assert len(list(second)) == 30
    assert text_of(max_tokens=30) == whole


def test_statistics_stay_with_the_answer_that_they_count() -> None:
    s = session()
    first = s.generate("Once upon a time", max_tokens=12, sampling=Sampling())
    counted = s.stats
    s.generate("One day", max_tokens=12, sampling=Sampling())
    never_run = s.stats
    tokens = [e.token for e in first if e.token is not None]
    assert counted.generated_tokens == len(tokens) == 12
    assert counted.seconds["verify"] > 0 < counted.seconds["draft"]
    assert never_run.rounds == never_run.slides == 0
    assert not any(spent for part, spent in never_run.seconds.items() if part != "load")


@pytest.mark.parametrize("drafter", ["chain", "chain,lookup", "auto"])
def test_passes_are_measured_before_an_answer_never_within_one(
    drafter: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    probed: list[int] = []
    probe = Model.probe
    monkeypatch.setattr(Model, "probe", lambda self, *a: (probed.append(a[0]), probe(self, *a))[1])
    with load(embedded_bundle(), drafter=drafter, threads=1) as fresh:
        assert probed, "nothing is known of this machine, so something had to be measured"
        probed.clear()
        list(fresh.generate("One day", max_tokens=12))
        with fresh.another("tree") as other:
            probed.clear()
            list(other.generate("One day", max_tokens=12))
        assert not probed


def test_a_reset_in_the_middle_of_an_answer_ends_it_with_a_word() -> None:
    stream = session().chat([ASK], max_tokens=60)
    next(stream)
    session().reset()
    with pytest.raises(ValueError, match="given up"):
        list(stream)


def test_the_seed_that_the_statistics_name_gives_the_same_answer_again() -> None:
    choice = Sampling(temperature=1.0)
    list(session().generate("One day", max_tokens=5, sampling=choice))
    first = [e.token for e in session().generate("One day", max_tokens=12, sampling=choice)]
    seed = session().stats.seed
    assert first == [
        e.token for e in session().generate("One day", max_tokens=12, sampling=choice, seed=seed)
    ]


@pytest.mark.parametrize("choices", [{"max_tokens": 1.5}, {"seed": "x"}, {"seed": 1.0}])
def test_a_number_that_is_not_whole_is_refused(choices: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        session().chat([ASK], **choices)  # type: ignore[arg-type]


def test_ids_and_messages_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match="token id must be a whole number"):
        session().generate([1.7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'role' and a 'content'"):
        session().chat([{}])


def test_onnx_runtime_is_told_to_collect_nothing() -> None:
    session()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"

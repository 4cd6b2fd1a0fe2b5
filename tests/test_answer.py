"""One generation as a program sees it: whole, step by step, cancelled, beside an event loop, with probabilities."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from storybook import session

from paceline import Sampling
from paceline.memory.errors import ArgumentError
from paceline.runtime.answer import Answer
from paceline.runtime.events import Event
from paceline.runtime.model.model import Model

ASK = [{"role": "user", "content": "Tell me a story about a cat and a big cake."}]
SAMPLED = Sampling(temperature=0.9, top_k=50, repetition_penalty=1.1)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    session().reset()
    session().set_drafter("chain")
    yield
    session().set_drafter("none")


def ask(**choices: object) -> Answer:
    return session().chat(ASK, **{"sampling": Sampling(), **choices})  # type: ignore[arg-type]


def test_the_whole_answer_is_what_its_events_say() -> None:
    events = list(ask(max_tokens=40))
    whole = ask(max_tokens=40).read()
    assert whole.text == "".join(event.text for event in events)
    assert whole.tokens == [event.token for event in events if event.token is not None]
    assert whole.finish_reason == events[-1].finish_reason == "length"
    assert whole.stats.generated_tokens == len(whole.tokens) == 40
    assert whole.stats is session().stats
    assert list(whole) == []


def test_an_answer_that_is_under_way_shows_what_there_is() -> None:
    answer = ask(max_tokens=30)
    first = [next(answer) for _ in range(5)]
    assert answer.text == "".join(event.text for event in first)
    assert answer.tokens == [event.token for event in first]
    assert answer.finish_reason is None
    assert "5 tokens, not at its end" in repr(answer)
    assert len(answer.read().tokens) == 30
    assert repr(answer) == "<Answer of 30 tokens, length>"


@pytest.mark.parametrize("stop", [(), (" the end of all that",)])
def test_an_answer_is_cancelled_from_another_thread(stop: tuple[str, ...]) -> None:
    whole = ask(max_tokens=200, stop=stop).read()
    answer = ask(max_tokens=200, stop=stop)
    seen: list[Event] = []
    for event in answer:
        seen.append(event)
        if len(seen) == 7:
            thread = threading.Thread(target=answer.cancel)
            thread.start()
            thread.join()
    assert seen[-1].finish_reason == answer.finish_reason == "cancelled"
    assert whole.text.startswith(answer.text)
    assert 6 <= len(answer.tokens) < 7 + 17
    assert ask(max_tokens=200, stop=stop).read().tokens == whole.tokens


def test_a_prompt_that_is_read_is_cancelled_between_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, chunks = Model.prefill, []
    answer = session().generate([5] * 400, max_tokens=3)

    def slow(self: Model, tokens: list[int]) -> object:
        chunks.append(len(tokens))
        answer.cancel()
        return prefill(self, tokens)

    monkeypatch.setattr(Model, "prefill", slow)
    assert answer.read().finish_reason == "cancelled"
    assert answer.tokens == []
    assert len(chunks) == 1
    assert answer.stats.control is not None


def test_an_answer_cancelled_before_it_began_computes_nothing() -> None:
    kept = ask(max_tokens=12).read()
    answer = ask(max_tokens=12)
    answer.cancel()
    assert [event.finish_reason for event in answer] == ["cancelled"]
    assert answer.stats.rounds == 0
    assert ask(max_tokens=12).read().tokens == kept.tokens


def test_leaving_the_loop_ends_the_answer_and_books_it() -> None:
    for event in ask(max_tokens=60):
        if event.token is not None:
            break
    gc.collect()
    stats = session().stats
    assert stats.control is not None
    assert stats.seconds["total"] > 0


def test_an_answer_that_was_given_up_leaves_the_books_of_the_next_one_alone() -> None:
    first, second = ask(max_tokens=30), ask(max_tokens=30)
    next(first)
    next(second)
    with pytest.raises(ValueError, match=r"session\.another\(\)"):
        first.read()
    for _ in range(2):
        with pytest.raises(ValueError, match="given up"):
            next(first)
    assert first.stats.control is None
    assert second.read().stats.control is not None


def test_an_answer_that_failed_never_looks_like_one_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask(max_tokens=30)
    next(answer)

    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(answer._stream, "push", fail)
    with pytest.raises(RuntimeError, match="device is gone"):
        answer.read()
    for _ in range(2):
        with pytest.raises(ArgumentError, match="ended in an error: the device is gone"):
            answer.read()


def test_nothing_is_said_when_an_answer_outlives_its_session() -> None:
    code = (
        "import paceline\n"
        "with paceline.load(drafter='none', threads=1) as s:\n"
        "    b = s.generate('One day', max_tokens=9); next(b); z = [lambda: s]\n"
        "    a = s.generate('One day', max_tokens=9); next(a)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# -- beside an event loop --------------------------------------------------------------------------------------


def test_an_event_loop_goes_on_while_an_answer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(max_tokens=20).read().tokens
    session().reset()
    score = Model.score
    monkeypatch.setattr(Model, "score", lambda self, tree: (time.sleep(0.03), score(self, tree))[1])
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.perf_counter())
            await asyncio.sleep(0.002)

    async def main() -> list[int]:
        beating = asyncio.create_task(beat())
        events = session().achat(ASK, max_tokens=20, sampling=Sampling())
        tokens = [event.token async for event in events if event.token is not None]
        beating.cancel()
        return tokens

    assert asyncio.run(main()) == expected
    rounds = session().stats.rounds
    assert len(beats) > 3 * rounds  # 15 or so fit into each of them


def test_a_task_that_is_cancelled_leaves_a_session_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(max_tokens=20).read().tokens
    session().reset()
    running = threading.Event()
    score = Model.score

    def slow(self: Model, tree: object) -> object:
        running.set()
        time.sleep(0.05)
        try:
            return score(self, tree)  # type: ignore[arg-type]
        finally:
            running.clear()

    async def main() -> None:
        async def follow() -> None:
            async for _ in session().achat(ASK, max_tokens=400):
                pass

        task = asyncio.create_task(follow())
        while not running.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not running.is_set(), "the round is over before the task is"

    with monkeypatch.context() as patch:
        patch.setattr(Model, "score", slow)
        asyncio.run(main())
    assert ask(max_tokens=20).read().tokens == expected


def test_leaving_an_async_loop_ends_the_answer_and_errors_come_through() -> None:
    async def main() -> None:
        async for event in session().agenerate("One day", max_tokens=50):
            if event.token is not None:
                break
        answer = session().chat(ASK, max_tokens=5, sampling=Sampling())
        assert [e.token async for e in answer][:-1] == answer.tokens
        with pytest.raises(ValueError, match="temperature"):
            async for _ in session().agenerate("One day", sampling=Sampling(temperature=-1.0)):
                pass

    asyncio.run(main())


# -- probabilities ---------------------------------------------------------------------------------------------


def likely(drafter: str, **choices: object) -> list[Event]:
    session().set_drafter(drafter)
    session().reset()
    return list(ask(max_tokens=40, **choices))


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_probabilities_are_those_of_the_target_whatever_drafts(sampling: Sampling) -> None:
    plain = likely("none", logprobs=5, sampling=sampling, seed=3)
    for drafter in ("chain", "tree", "lookup,recycle"):
        likely(drafter, sampling=sampling, seed=3)  # a drafter without a model has seen nothing before
        told = likely(drafter, logprobs=5, sampling=sampling, seed=3)
        same = [(e.token, e.logprob, e.top_logprobs) for e in told]
        assert same == [(e.token, e.logprob, e.top_logprobs) for e in plain]
        assert any(e.source for e in told)
    for event in plain[:-1]:
        assert event.logprob is not None
        assert len(event.top_logprobs) == 5
        values = [value for _, value in event.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-9
        assert event.logprob <= values[0]
        assert dict(event.top_logprobs).get(event.token or 0, event.logprob) == event.logprob
    if not sampling.temperature:
        assert all(e.top_logprobs[0][0] == e.token for e in plain[:-1])


def test_probabilities_are_a_softmax_of_the_models_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[np.ndarray] = []
    score = Model.score

    def watched(self: Model, tree: object) -> object:
        scored = score(self, tree)  # type: ignore[arg-type]
        rows.append(scored.logits[0].astype(np.float64))
        return scored

    monkeypatch.setattr(Model, "score", watched)
    told = likely("none", logprobs=0, sampling=SAMPLED, seed=1)
    for row, event in zip(rows, told, strict=False):
        assert event.top_logprobs == ()
        expected = row[event.token] - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert event.logprob == pytest.approx(expected, abs=1e-9)


def test_without_being_asked_nothing_is_said_of_probabilities() -> None:
    assert all(e.logprob is None and e.top_logprobs == () for e in ask(max_tokens=8))
    for wrong in (-1, 101, "many"):
        with pytest.raises(ValueError, match="logprobs"):
            ask(logprobs=wrong)


def test_a_token_that_waits_for_a_stop_string_keeps_its_probability() -> None:
    freely = likely("chain", logprobs=1)
    text = "".join(e.text for e in freely)
    stop = text[60:64]
    held = likely("chain", logprobs=1, stop=[stop])
    told = [e for e in held if e.token is not None]
    assert [(e.token, e.logprob) for e in told] == [(e.token, e.logprob) for e in freely[: len(told)]]

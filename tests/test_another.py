"""Several sessions over one loaded bundle: each says what it would say alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import BUNDLE

from paceline import load
from paceline.memory.budget import resident
from paceline.memory.errors import ArgumentError
from paceline.memory.plan import BudgetError
from paceline.runtime.contracts import Scored
from paceline.runtime.control.controller import Controller
from paceline.runtime.model.model import Model
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

PROMPTS = ("One day a bird", "Tim and Sue went to the park", "The old farmer had a cow")
DRAFTERS = ("chain", "auto", "suffix,recycle")


def tokens(session: Session, prompt: str, count: int = 60) -> Iterator[int]:
    for event in session.generate(prompt, max_tokens=count, sampling=Sampling(0.7), seed=5):
        if event.token is not None:
            yield event.token


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        with load(BUNDLE, drafter="none") as session:
            found.append(list(tokens(session, prompt)))
    return found


def three(**options: object) -> list[Session]:
    first = load(BUNDLE, drafter=DRAFTERS[0], **options)  # type: ignore[arg-type]
    return [first, *(first.another(drafter=name) for name in DRAFTERS[1:])]


def test_answers_that_take_turns_do_not_mix(alone: list[list[int]]) -> None:
    sessions = three()
    running = [tokens(s, p) for s, p in zip(sessions, PROMPTS, strict=True)]
    told: list[list[int]] = [[], [], []]
    while any(told_now := [next(r, None) for r in running]):
        for said, token in zip(told, told_now, strict=True):
            said += [] if token is None else [token]
    assert told == alone
    sessions[0].close()
    assert list(tokens(sessions[1], PROMPTS[0])) == alone[0]


def test_answers_in_threads_do_not_mix(alone: list[list[int]]) -> None:
    sessions, told = three(), dict[tuple[int, int], list[int]]()

    def talk(number: int) -> None:
        for turn in range(3):
            told[number, turn] = list(tokens(sessions[number], PROMPTS[number]))

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {(n, turn): alone[n] for n in range(3) for turn in range(3)}


def test_weights_and_tokenizer_are_loaded_once() -> None:
    first = load(BUNDLE, drafter="none")
    list(tokens(first, PROMPTS[0]))
    before = resident()
    more = [first.another() for _ in range(4)]
    for session in more:
        list(tokens(session, PROMPTS[0]))
    weights = first.bundle.manifest.files[first.bundle.manifest.target.data].bytes
    assert (
        resident() - before < weights
    )  # four sessions together; each with its own would take four times that
    assert all(s.text is first.text for s in more)
    assert first.stats.planned_bytes


def test_a_plan_counts_every_session() -> None:
    roomy = load(BUNDLE, memory="100MB", drafter="chain", context=256)
    made = [roomy]

    def fill() -> None:
        for _ in range(60):
            made.append(made[-1].another())
            list(tokens(made[-1], PROMPTS[0], 4))
            assert made[-1].plan is not None
            assert resident() <= (made[-1].plan.budget or 0)

    with pytest.raises(BudgetError, match="cannot hold") as refused:
        fill()
    assert len(made) > 2
    assert "\n" not in str(refused.value)
    made.pop().close()
    again = made[0].another()  # the room of one that was closed
    assert list(tokens(again, PROMPTS[0], 4))


def test_another_session_begins_with_what_was_learnt_of_the_bundle() -> None:
    def rounds_known(session: Session) -> float:
        control = session._drafting.control
        assert isinstance(control, Controller)
        session.generate("Once upon a time, a cat", max_tokens=1, sampling=Sampling()).read()
        return sum(arm.weight for arm in control._arms if not arm.plain)

    with load(BUNDLE, drafter="auto", threads=1) as session:
        session.generate("Once upon a time, a dog", max_tokens=150, sampling=Sampling()).read()
        with session.another() as second:
            assert rounds_known(second) > 5
    with load(BUNDLE, drafter="auto", threads=1) as stranger:
        assert rounds_known(stranger) <= 1


@pytest.mark.parametrize(
    "act", ["reset", "save", "restore", "set_drafter", "generate", "close", "close answer"]
)
def test_nobody_touches_the_cache_in_the_middle_of_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    with load(BUNDLE, drafter="none") as session:
        alone = list(tokens(session, PROMPTS[1], 12))
        session.save(tmp_path / "kept")
        answer = session.generate(PROMPTS[0], max_tokens=12)
        acts: dict[str, Callable[[], object]] = {
            "reset": session.reset,
            "save": lambda: session.save(tmp_path / "now"),
            "restore": lambda: session.restore(tmp_path / "kept"),
            "set_drafter": lambda: session.set_drafter("suffix"),
            "generate": lambda: list(tokens(session, PROMPTS[1], 12)),
            "close": session.close,
            "close answer": answer.close,
        }
        order: list[str] = []

        def intrude() -> None:
            acts[act]()
            order.append(act)

        intruder, score = threading.Thread(target=intrude), Model.score

        def slow(model: Model, tree: TokenTree) -> Scored:
            scored = score(model, tree)
            if not intruder.ident:
                intruder.start()
                intruder.join(0.2)
                order.append("round")
            return scored

        monkeypatch.setattr(Model, "score", slow)
        with suppress(ArgumentError):  # given up
            answer.read()
        intruder.join()
        assert order == ["round", act]
    with load(BUNDLE, drafter="none") as session:
        assert list(tokens(session, PROMPTS[1], 12)) == alone

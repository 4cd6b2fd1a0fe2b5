"""Runs plain decoding and every drafter on the same prompts in one process, interleaved."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from paceline.bench_prompts import Task

if TYPE_CHECKING:
    from paceline.runtime.answer import Answer
    from paceline.runtime.request import Accept, Sampling
    from paceline.runtime.session import Session
    from paceline.runtime.stats import Statistics
    from paceline.runtime.timeline import Timeline

PLAIN, CONTROL, AUTO = "none", "none again", "auto"
OFF = " off"
"""Behind the name of a drafter that learns: the same one, not learning."""
_WARM_UP_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's answers to one task (all its turns), in one pass.

    decode_seconds: wall time after the prompts were read, as this process's clock gives it. prompt_tokens: those that
    were read in prefill_seconds.
    chosen: tokens that each drafter was in charge of, where a controller chose. trace: why, of the last answer.
    """

    contender: str
    task: Task
    repeat: int
    tokens: tuple[int, ...]
    decode_seconds: float
    prefill_seconds: float
    prompt_tokens: int
    rounds: int
    drafted: int
    accepted: int
    tested: int
    accepted_by_depth: tuple[int, ...]
    tested_by_depth: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    judge_seconds: float
    wait_seconds: float = 0.0
    beside: tuple[tuple[str, float], ...] = ()
    """Counts and seconds of `Tally`, where something was drafted beside the target's passes."""
    chosen: tuple[tuple[str, int], ...] = ()
    trace: tuple[str, ...] = ()
    timeline: Timeline | None = None
    """When what ran, of the first answer, where that was recorded."""

    @property
    def tokens_per_second(self) -> float:
        """0 where the model stopped at once."""
        return len(self.tokens) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """How every contender is asked."""

    max_tokens: int
    sampling: Sampling
    accept: Accept
    seed: int


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs, and the tasks that did not fit the context, with the reason.

    interrupted: whether Ctrl-C ended it early; a prompt that not everybody had answered is left out.
    """

    runs: tuple[Run, ...]
    skipped: tuple[tuple[Task, str], ...]
    interrupted: bool = False


def measure(
    open_session: Callable[[bool], Session],
    tasks: Sequence[Task],
    drafters: Sequence[str],
    question: Question,
    repeats: int,
    report: Callable[[int, int, str], None],
    learning: Collection[str] = (),
    traced: bool = False,
) -> Measured:
    """Plain decoding twice (the second as a control) and each drafter once, per task and repeat.

    learning: the drafters that learn from use. Each of them has a session of its own, learns nothing but its own
    answers, between these, and is asked besides without learning. open_session: told whether its draft models learn.

    Every repeat starts from a session loaded anew: a drafter that learns must not meet a prompt again that
    it has answered before. Contenders take turns at going first, and the tasks are shuffled, so that what is
    learnt from one group does not favour the groups that stand later in the file.

    report: told after every prompt how many are done, of how many, and what is done. traced: whether the answers to
    the first prompt are recorded.
    """
    contenders = [PLAIN, CONTROL, *(d for d in drafters if d != PLAIN), *(d + OFF for d in learning)]
    runs: list[Run] = []
    skipped: dict[str, tuple[Task, str]] = {}
    order = shuffled(tasks)

    def one_pass(repeat: int) -> None:
        with ExitStack() as opened:
            sessions = {name: opened.enter_context(open_session(True)) for name in learning}
            for session in sessions.values():
                session.learner.alone()
            other = opened.enter_context(open_session(False))
            answer_all({c: sessions.get(c, other) for c in contenders}, repeat)

    def answer_all(sessions: dict[str, Session], repeat: int) -> None:
        for contender in contenders:
            _warm_up(sessions[contender], contender)
        for number, task in enumerate(order):
            turn = (number + repeat) % len(contenders)
            try:
                rows = [
                    _run(sessions[c], c, task, repeat, question, traced and not runs)
                    for c in contenders[turn:] + contenders[:turn]
                ]
            except ValueError as error:
                skipped[task.name] = (task, str(error))
                continue
            runs.extend(rows)
            text = f"pass {repeat + 1} of {repeats}, prompt {number + 1} of {len(tasks)} ({task.group})"
            report(repeat * len(tasks) + number + 1, repeats * len(tasks), text)

    interrupted = False
    try:
        for repeat in range(repeats):
            one_pass(repeat)
            gc.collect()
    except KeyboardInterrupt:
        interrupted = True
    return Measured(tuple(runs), tuple(skipped.values()), interrupted)


def shuffled(tasks: Sequence[Task]) -> list[Task]:
    """The tasks in an order that is always the same."""
    order = list(tasks)
    random.Random(0).shuffle(order)
    return order


def _drafter(contender: str) -> str:
    return PLAIN if contender == CONTROL else contender.removesuffix(OFF)


def _warm_up(session: Session, contender: str) -> None:
    session.set_drafter(_drafter(contender))
    for _ in session.generate("The", max_tokens=_WARM_UP_TOKENS, seed=0):
        pass


def _run(session: Session, contender: str, task: Task, repeat: int, question: Question, traced: bool) -> Run:
    session.set_drafter(_drafter(contender))
    session.reset()
    tokens: list[int] = []
    answers: list[tuple[Statistics, float]] = []
    timelines: list[Timeline] = []
    for ids, wall in _answers(session, task, question, timelines if traced else None):
        tokens += ids
        answers.append((session.stats, wall))
    session.learner.wait()  # as while somebody reads the answer
    every = [stats for stats, _ in answers]
    prefill = sum(s.seconds["prefill"] for s in every)
    return Run(
        contender,
        task,
        repeat,
        tuple(tokens),
        decode_seconds=sum(wall for _, wall in answers) - prefill,
        prefill_seconds=prefill,
        prompt_tokens=sum(max(s.prompt_tokens - s.reused_tokens - 1, 0) for s in every),
        rounds=sum(s.rounds for s in every),
        drafted=sum(s.drafted for s in every),
        accepted=sum(s.accepted for s in every),
        tested=sum(s.tested for s in every),
        accepted_by_depth=add_up(s.accepted_by_depth for s in every),
        tested_by_depth=add_up(s.tested_by_depth for s in every),
        draft_seconds=sum(s.seconds["draft"] for s in every),
        verify_seconds=sum(s.seconds["verify"] for s in every),
        judge_seconds=sum(s.seconds["judge"] for s in every),
        wait_seconds=sum(s.seconds["wait"] for s in every),
        beside=tuple(
            (name, count)
            for s in every
            if s.beside is not None and s.beside.passes
            for name, count in asdict(s.beside).items()
            if name != "failure"
        ),
        chosen=tuple(pair for s in every if s.control for pair in s.control.tokens.items()),
        trace=tuple(every[-1].control.lines()) if contender == AUTO and every[-1].control else (),
        timeline=timelines[0] if timelines else None,
    )


def _answers(
    session: Session, task: Task, question: Question, timelines: list[Timeline] | None
) -> Iterator[tuple[list[int], float]]:
    """Token ids and wall seconds of each answer. timelines: gets one of each, None where nothing is recorded.

    Without a chat template only the first turn is asked, as raw text.
    """
    messages: list[dict[str, str]] = []
    for turn in task.turns if session.has_template else task.turns[:1]:
        messages.append({"role": "user", "content": turn})
        begun = time.perf_counter()
        answer = _ask(session, messages, question)
        if timelines is not None:
            timelines.append(answer.record())
        events = list(answer)
        wall = time.perf_counter() - begun
        messages.append({"role": "assistant", "content": "".join(e.text for e in events)})
        yield [e.token for e in events if e.token is not None], wall


def _ask(session: Session, messages: list[dict[str, str]], question: Question) -> Answer:
    if not session.has_template:
        return session.generate(
            messages[0]["content"],
            max_tokens=question.max_tokens,
            sampling=question.sampling,
            accept=question.accept,
            seed=question.seed,
        )
    return session.chat(
        messages,
        max_tokens=question.max_tokens,
        sampling=question.sampling,
        accept=question.accept,
        seed=question.seed,
    )


def add_up(lists: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Sum entry by entry; a shorter list counts as zeros."""
    return tuple(sum(entries) for entries in zip_longest(*lists, fillvalue=0))


def add_by_name(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sum the counts of each name."""
    found: dict[str, float] = {}
    for name, count in pairs:
        found[name] = found.get(name, 0) + count
    return found

"""Runs plain decoding and every drafter on the same prompts in one process, interleaved."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.bench_prompts import Task

if TYPE_CHECKING:
    from paceline.runtime.engine import Session
    from paceline.runtime.sampling import Sampling

PLAIN, CONTROL = "none", "none again"
_WARM_UP_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Run:
    """One contender's answers to one task (all its turns), in one pass.

    decode_seconds: wall time after the prompts were read, as this process's clock gives it.
    """

    contender: str
    task: Task
    repeat: int
    tokens: tuple[int, ...]
    decode_seconds: float
    prefill_seconds: float
    rounds: int
    drafted: int
    accepted: int
    tested: int
    accepted_by_depth: tuple[int, ...]
    tested_by_depth: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    judge_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """0 where the model stopped at once."""
        return len(self.tokens) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """How every contender is asked."""

    max_tokens: int
    sampling: Sampling | None
    accept: str
    seed: int


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs, and the tasks that did not fit the context, with the reason."""

    runs: tuple[Run, ...]
    skipped: tuple[tuple[Task, str], ...]


def measure(
    open_session: Callable[[], Session],
    tasks: Sequence[Task],
    drafters: Sequence[str],
    question: Question,
    repeats: int,
    report: Callable[[str], None],
) -> Measured:
    """Plain decoding twice (the second as a control) and each drafter once, per task and repeat.

    Every repeat starts from a session loaded anew: a drafter that learns must not meet a prompt again that
    it has answered before. Contenders take turns at going first.
    """
    contenders = [PLAIN, CONTROL, *(d for d in drafters if d != PLAIN)]
    runs: list[Run] = []
    skipped: dict[str, tuple[Task, str]] = {}
    for repeat in range(repeats):
        session = open_session()
        for contender in contenders:
            _warm_up(session, contender)
        for number, task in enumerate(tasks):
            turn = (number + repeat) % len(contenders)
            try:
                rows = [_run(session, c, task, repeat, question) for c in contenders[turn:] + contenders[:turn]]
            except ValueError as error:
                skipped[task.name] = (task, str(error))
                continue
            runs.extend(rows)
            report(f"pass {repeat + 1} of {repeats}, prompt {number + 1} of {len(tasks)} ({task.group})")
        session.close()
        del session
        gc.collect()
    return Measured(tuple(runs), tuple(skipped.values()))


def _drafter(contender: str) -> str:
    return PLAIN if contender == CONTROL else contender


def _warm_up(session: Session, contender: str) -> None:
    session.set_drafter(_drafter(contender))
    for _ in session.generate("The", max_tokens=_WARM_UP_TOKENS, seed=0):
        pass


def _run(session: Session, contender: str, task: Task, repeat: int, question: Question) -> Run:
    session.set_drafter(_drafter(contender))
    session.reset()
    tokens: list[int] = []
    totals = _Totals()
    for answer in _turns(session, task, question):
        tokens += answer
        totals.add(session)
    return Run(contender, task, repeat, tuple(tokens), *totals.as_fields())


def _turns(session: Session, task: Task, question: Question) -> Iterator[list[int]]:
    """Token ids of each answer. Without a chat template only the first turn is asked, as raw text."""
    messages: list[dict[str, str]] = []
    for turn in task.turns if session.has_template else task.turns[:1]:
        messages.append({"role": "user", "content": turn})
        prompt = {"messages": messages} if session.has_template else {"prompt": turn}
        ask = session.chat if session.has_template else session.generate
        events = list(
            ask(
                *prompt.values(),  # type: ignore[arg-type]
                max_tokens=question.max_tokens,
                sampling=question.sampling,
                accept=question.accept,
                seed=question.seed,
            )
        )
        messages.append({"role": "assistant", "content": "".join(e.text for e in events)})
        yield [e.token for e in events if e.token is not None]


class _Totals:
    """Sums over the turns of a task."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

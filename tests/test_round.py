"""How much code one round is: files and functions of ours that a round of the storyteller's chain goes through."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from storybook import session

ROOT = Path(__file__).parents[1]
ROUNDS = 40
FILES, FUNCTIONS = 15, 62
"""Of those that run in every second round. Files stay apart that answer questions of their own."""


def counted() -> tuple[Counter[str], dict[str, set[int]], int]:
    """Of an answer that has settled: calls of each function, the rounds in which it ran, and how many there were."""
    s = session()
    s.reset()
    s.set_drafter("chain")
    s.text.decode(range(s.text.vocab_size))  # what a token spells is looked up once
    endless = replace(s.defaults, banned=frozenset(s.bundle.generation.eos_ids))
    answer = s.chat([{"role": "user", "content": "Tell me about a dog and a boat."}], sampling=endless)
    while answer.stats.rounds < 40:
        next(answer)
    calls: Counter[str] = Counter()
    ran: dict[str, set[int]] = {}
    done = answer.stats.rounds

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = os.path.realpath(frame.f_code.co_filename)
        if event == "call" and path.startswith((f"{ROOT}/runtime", f"{ROOT}/memory", f"{ROOT}/apps")):
            name = f"{Path(path).relative_to(ROOT)}:{frame.f_code.co_qualname}"
            calls[name] += 1
            ran.setdefault(name, set()).add(answer.stats.rounds)

    sys.setprofile(note)
    try:
        while answer.stats.rounds < done + ROUNDS and answer.finish_reason is None:
            next(answer)
    finally:
        sys.setprofile(None)
        s.set_drafter("none")
    return calls, ran, answer.stats.rounds - done


def test_a_round_goes_through_few_files_and_functions() -> None:
    calls, ran, rounds = counted()
    assert rounds > 20
    usual = sorted(name for name, when in ran.items() if len(when) >= rounds / 2)
    usual_files = sorted({name.split(":")[0] for name in usual})
    print(
        f"{len({name.split(':')[0] for name in ran})} files, {len(calls)} functions in {rounds} rounds; every second:"
    )
    print(
        f"{len(usual_files)} files, {len(usual)} functions, {sum(calls.values()) / rounds:.0f} calls a round"
    )
    for file in usual_files:
        print(f"  {file}: {', '.join(n.split(':')[1] for n in usual if n.startswith(file))}")
    assert 5 < len(usual_files) <= FILES, usual_files
    assert len(usual) <= FUNCTIONS, usual

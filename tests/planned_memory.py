"""What a process was planned to take, and what it took: a session with a budget in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SCRIPT = """
import json, sys, paceline
from paceline.memory.budget import peak_memory
session = paceline.load(**json.loads(sys.argv[1]), memory_scope="process", context=256, threads=1)
for turn in range(3):
    list(session.generate("Once upon a time there were %d dogs" % turn, max_tokens=60))
{then}
reserve = sum(term.bytes for term in session.plan.terms if term.part == "reserve")
print(json.dumps([peak_memory(), session.stats.planned_bytes - reserve]))
"""


class Taken(NamedTuple):
    """Bytes of a process: at its highest, and as planned, without what is kept back."""

    peak: int
    planned: int


def taken(bundle: Path, drafter: str, then: str = "", **choices: str) -> Taken:
    """Of a process that answers thrice. then: Python that is run after that, with `session`."""
    given = {"bundle": str(bundle), "drafter": drafter, "memory": "400MB", **choices}
    command = [sys.executable, "-c", _SCRIPT.format(then=then), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Taken(*json.loads(done.stdout))

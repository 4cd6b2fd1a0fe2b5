"""Reads what `paceline bench` asks: Spec-Bench JSONL, JSONL with `prompt`, or a prompt a line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MT_BENCH = frozenset(
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
)
_BUILT_IN = {
    "one thing": (
        "Tell me a story about a lost kite.",
        "Tell me a story about a cat.",
        "Tell me a story about a birthday cake.",
        "Write a story about a big tree.",
        "Please tell a story with a rabbit.",
    ),
    "two things": (
        "Tell me a story about a dog and a red ball.",
        "Tell me a short story about a girl and a boat.",
        "Write a story about a bird and a hat.",
        "Can you tell me a story about a bear and a drum?",
        "I want a story about a boy and a small frog.",
    ),
    "three things": (
        "Tell me a story about a farmer, a cow and a storm.",
        "Tell me a story about a mouse, a piece of cheese and a clock.",
        "Write a story about a princess, a dragon and a key.",
        "Can you tell me a story about a teacher, a book and a window?",
        "A story about a train, a bridge and a sheep, please.",
    ),
}


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation to have: the user's turns, one after the other."""

    name: str
    group: str
    turns: tuple[str, ...]


def built_in_tasks() -> list[Task]:
    """A few requests that suit the embedded storyteller."""
    return [
        Task(f"{group} {number}", group, (text,))
        for group, texts in _BUILT_IN.items()
        for number, text in enumerate(texts, 1)
    ]


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a file (`.gz` too). Raises ValueError that names the line which is wrong."""
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError):
        raise ValueError(f"{path} is not UTF-8 text: give JSONL or a prompt a line") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompt")
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    if not lines[0][1].lstrip().startswith("{"):
        return [Task(f"line {number}", stem, (line.strip(),)) for number, line in lines]
    return [_from_json(path, number, line, stem) for number, line in lines]


def _from_json(path: Path, number: int, line: str, stem: str) -> Task:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}, line {number} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number} is not a JSON object")
    turns = found.get("turns", [found[key] for key in ("prompt", "question") if key in found][:1])
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError(f"{path}, line {number} has neither 'turns' (a list of texts) nor 'prompt'")
    category = str(found.get("category", stem))
    name = str(found.get("question_id", found.get("task_id", f"line {number}")))
    return Task(name, "mt_bench" if category in _MT_BENCH else category, tuple(turns))


def spread(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    """At most `limit` tasks, evenly spaced, so that every group of a sorted file has its share."""
    if limit is None or limit >= len(tasks):
        return list(tasks)
    return [tasks[i * len(tasks) // limit] for i in range(limit)]

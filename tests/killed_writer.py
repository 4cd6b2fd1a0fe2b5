"""A writer that is killed while it writes a file again and again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def kill_while_writing(path: Path, write: Callable[..., None], *given: object) -> None:
    """Let `write` run in a process of its own, until it has written the file that is at `path` anew."""
    before = path.stat().st_mtime_ns
    context = multiprocessing.get_context("fork")  # the writer runs no graph
    writer = context.Process(target=write, args=given)
    writer.start()
    until = time.monotonic() + 60
    while path.stat().st_mtime_ns == before and time.monotonic() < until:
        time.sleep(0.003)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    assert path.stat().st_mtime_ns != before, "it was killed before it had begun to write"

"""Calls the `paceline` command inside the test's process, and says where a bundle for it lies."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.embedded import embedded_bundle
from paceline.main import main

BUNDLE = embedded_bundle()


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def call(*arguments: str | Path, stdin: str | bytes = "") -> Done:
    """Run one command line to its end."""
    out, err = io.StringIO(), io.StringIO()
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(a) for a in arguments])
    finally:
        sys.stdin = before
    return Done(code, out.getvalue(), err.getvalue())


def copied_bundle(folder: Path) -> Path:
    """A copy of the embedded bundle that a test may damage."""
    return Path(shutil.copytree(BUNDLE, folder / "bundle"))


def refused_in_one_line(*arguments: str | Path) -> str:
    """What a command says that does nothing: one line, before any stage."""
    done = call(*arguments)
    assert done.code in (1, 2)
    assert not done.out
    assert done.err.count("\n") == 1, done.err
    return done.err

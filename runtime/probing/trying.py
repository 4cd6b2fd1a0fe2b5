"""Tries a device in a process of its own, for some end the process that tries them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from paceline.runtime.budget.libraries import Library, keep_library, recall_library
from paceline.runtime.bundle.measurements import keep, read_all
from paceline.runtime.model.key import device_key
from paceline.runtime.options import Options

_FILE = "devices.json"
_KEPT = 100
_PATIENCE, _PATIENCE_WITH_BUNDLE = 60.0, 600.0
"""Seconds until a process is given up."""
_CHILD = "paceline.runtime.probing.child"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a pass of one token and of so many `tokens`, of a head those of a draft; or why there are none.

    far_one, far_wide: the same over a text of some length. tokens: 1 where one token alone took so long that nothing
    else was measured.
    """

    one: float = 0.0
    wide: float = 0.0
    far_one: float = 0.0
    far_wide: float = 0.0
    tokens: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a process of its own is to do. library: NAME=PATH of the user's own.

    options: whose bundle is timed. parts: those alone. beyond: seconds of one token by part; what takes much longer is
    timed no further.
    """

    device: str
    library: str | None = None
    options: Options | None = None
    parts: Sequence[str] = ()
    beyond: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a child told, or why it told nothing. ended: whether the process came to an end of its own.

    library: what the device's library takes, where that was told.
    """

    problem: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    ended: bool = False
    library: Library | None = None


def probed(device: str, library: str | None = None, again: bool = False) -> Probed:
    """Try a device. What worked, what its library takes, and what ended the process, is known from then on.

    What a user may have put right meanwhile, a driver that was lacking, is tried each time. again: all is tried anew.
    """
    key = device_key(device)
    known = None if again else read_all(_FILE).get(key)
    if isinstance(known, str) and (known or recall_library(device) is not None):
        return Probed(known, ended=bool(known))
    told = run_child(Asked(device, library))
    if not told.problem or told.ended:
        keep(_FILE, key, told.problem, _KEPT)
    if told.library is not None:
        keep_library(device, told.library)
    return told


def run_child(asked: Asked) -> Probed:
    """Let a process do it. Nothing of it is remembered."""
    patience = _PATIENCE if asked.options is None else _PATIENCE_WITH_BUNDLE
    with TemporaryDirectory(prefix="paceline-") as folder:
        job, out = Path(folder) / "job.json", Path(folder) / "found.json"
        job.write_text(json.dumps(_job(asked)))
        command = [sys.executable, "-P", "-m", _CHILD, str(job), str(out)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            return Probed(f"it did not answer within {patience:.0f} s", ended=True)
        if done.returncode == 0 and out.is_file():
            return _told(json.loads(out.read_text()))
        return Probed(_ended(done.returncode, done.stderr), ended=True)


def _job(asked: Asked) -> dict[str, object]:
    chosen = (
        {} if asked.options is None else {f.name: getattr(asked.options, f.name) for f in fields(Options)}
    )
    return {
        "device": asked.device,
        "library": asked.library,
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in chosen.items()},
        "parts": list(asked.parts),
        "beyond": dict(asked.beyond),
    }


def _told(found: Mapping[str, object]) -> Probed:
    costs, takes = found.get("costs"), found.get("library")
    parts = costs if isinstance(costs, dict) else {}
    return Probed(
        str(found.get("problem") or ""),
        {name: Cost(**cost) for name, cost in parts.items()},
        library=Library(*takes) if isinstance(takes, list) else None,
    )


def _ended(code: int, stderr: bytes) -> str:
    """Why a child came to no result."""
    said = (stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    last = "".join(c for c in said if c.isprintable())[:200]
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it ends the process that tries it ({name}{f': {last}' if last else ''})"
    return f"the process that tried it ended with {code}{f': {last}' if last else ''}"

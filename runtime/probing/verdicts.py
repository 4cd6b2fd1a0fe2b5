"""Which devices really run here: each is tried in a process of its own, for some end the process that tries them."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from paceline.runtime.bundle.measurements import keep, read_all
from paceline.runtime.model.device import Device, devices_of
from paceline.runtime.model.key import system
from paceline.runtime.model.ort import DeviceError, runtime_version
from paceline.runtime.model.providers import CPU, PROVIDERS, Provider, provider_version

_FILE = "devices.json"
_KEPT = 100
_PATIENCE, _PATIENCE_WITH_BUNDLE = 60.0, 600.0
"""Seconds until a process is given up."""
_CHILD = "paceline.runtime.probing.child"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a pass of one token and of so many `tokens`, of a head those of a draft; or why there is none."""

    one: float = 0.0
    wide: float = 0.0
    tokens: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of trying a device. problem: why it cannot be used, "" where it can. costs: by part of the bundle."""

    name: str
    provider: str
    kind: str
    detail: str = ""
    problem: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether graphs can run there."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Wanted:
    """library: NAME=PATH of the user's own. bundle: whose passes are timed. again: nothing is known from before."""

    library: str | None = None
    bundle: Path | None = None
    threads: int = 1
    again: bool = False


def verdicts(wanted: Wanted, own: Provider | None = None) -> Iterator[Verdict]:
    """Every device of every provider, the CPU first, and a line for each provider without one.

    own: the provider of `wanted.library`. A library of the user's is tried in a process of its own before
    it is loaded into this one.
    """
    for provider in (*PROVIDERS.values(), *([] if own is None else [own])):
        if provider is own:
            first = probed(provider.word, wanted)
            if first.problem:
                yield Verdict(provider.word, provider.name, provider.kinds, problem=first.problem)
                continue
        try:
            devices = devices_of(provider)
        except DeviceError as error:
            yield Verdict(provider.word, provider.name, provider.kinds, problem=str(error))
            continue
        for device in devices:
            yield _verdict(device, wanted)


def _verdict(device: Device, wanted: Wanted) -> Verdict:
    known = Verdict(device.name, device.provider, device.hardware.kind, device.detail)
    if device.runs is CPU and wanted.bundle is None:
        return known
    found = probed(device.name, wanted)
    return Verdict(known.name, known.provider, known.kind, known.detail, found.problem, found.costs)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a child told, or why it told nothing."""

    problem: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)


def probed(name: str, wanted: Wanted) -> Probed:
    """Try a device in a process of its own; what worked, and what ended the process, is known from then on.

    What a user may have put right meanwhile, a driver that was lacking, is tried each time. Costs are never remembered.
    """
    key = _key(name)
    known = None if wanted.again or wanted.bundle is not None else read_all(_FILE).get(key)
    if isinstance(known, str):
        return Probed(known)
    told, ended = _child(name, wanted)
    if not told.problem or ended:
        keep(_FILE, key, told.problem, _KEPT)
    return told


def _key(name: str) -> str:
    parts = (name, provider_version(name), runtime_version(), metadata.version("paceline"), system())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def _child(name: str, wanted: Wanted) -> tuple[Probed, bool]:
    """Run the child; whether it was ended before it could say anything."""
    bundle = None if wanted.bundle is None else str(wanted.bundle)
    job = {"device": name, "library": wanted.library, "bundle": bundle, "threads": wanted.threads}
    patience = _PATIENCE if bundle is None else _PATIENCE_WITH_BUNDLE
    with TemporaryDirectory(prefix="paceline-") as folder:
        asked, out = Path(folder) / "job.json", Path(folder) / "found.json"
        asked.write_text(json.dumps(job))
        command = [sys.executable, "-P", "-m", _CHILD, str(asked), str(out)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            return Probed(f"it did not answer within {patience:.0f} s"), True
        if done.returncode == 0 and out.is_file():
            return _told(json.loads(out.read_text())), False
        return Probed(_ended(done.returncode, done.stderr)), True


def _told(found: Mapping[str, object]) -> Probed:
    costs = found.get("costs")
    parts = costs if isinstance(costs, dict) else {}
    return Probed(str(found.get("problem") or ""), {name: Cost(**cost) for name, cost in parts.items()})


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


def as_dict(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON has it."""
    return {**asdict(verdict), "works": verdict.works}

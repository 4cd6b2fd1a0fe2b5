"""Compiled forms of graphs, for providers that compile them: kept in the user's cache folder, never read elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import mkdtemp

from paceline.runtime.bundle.measurements import own_folder
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.model.device import Device
from paceline.runtime.model.key import system
from paceline.runtime.model.ort import runtime_version
from paceline.runtime.model.providers import provider_version

_FOLDER = "compiled"
_MOST = 2 << 30
"""Bytes of all forms together: what was not used for the longest time goes first."""
_STALE = 3600.0
"""Seconds after which a piece is taken for what a killed process left."""
_DIGEST = 32


class Compiled:
    """The compiled form of one graph on one device, in a file that begins with its own sha256; without a place none."""

    def __init__(self, place: Path | None = None) -> None:
        self._place = place
        self._piece: Path | None = None

    def read(self) -> bytes | None:
        """The form, a graph of ONNX; None where there is none. A damaged file goes."""
        if self._place is None:
            return None
        try:
            held = self._place.read_bytes()
            os.utime(self._place)
        except OSError:
            return None
        form = held[_DIGEST:]
        if hashlib.sha256(form).digest() == held[:_DIGEST]:
            return form
        self.drop()
        return None

    def drop(self) -> None:
        """Forget what is kept."""
        if self._place is not None:
            self._place.unlink(missing_ok=True)

    def wanted(self) -> Mapping[str, str]:
        """What a session is told so that the provider writes the form down; nothing where it cannot be written."""
        if self._place is None:
            return {}
        try:
            self._piece = Path(mkdtemp(prefix="piece-", dir=self._place.parent))
        except OSError:
            return {}
        return {
            "ep.context_enable": "1",
            "ep.context_file_path": str(self._piece / "graph.onnx"),
            "ep.context_embed_mode": "1",
        }

    def keep(self) -> None:
        """Keep what the provider wrote, if it did, now that what it was made of is confirmed."""
        if self._piece is None or self._place is None:
            return
        try:
            form = (self._piece / "graph.onnx").read_bytes()
            if len(form) <= _MOST:
                write_atomically(self._place, hashlib.sha256(form).digest() + form)
                _make_room(self._place)
        except OSError:
            return  # it is compiled again the next time
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Remove what the provider wrote."""
        if self._piece is not None:
            shutil.rmtree(self._piece, ignore_errors=True)
            self._piece = None


def compiled_of(device: Device, threads: int, content: Iterable[str]) -> Compiled:
    """The form of a graph whose files have these digests; one without a place where its provider has none.

    Another one where the library, ONNX Runtime, the device, or what it is told is another.
    """
    if not device.runs.compiles or (folder := own_folder(_FOLDER)) is None:
        return Compiled()
    known = sorted({**device.hardware.facts, **device.options(threads)}.items())
    parts = (
        *content,
        device.name,
        device.detail,
        device.hardware.kind,
        *(f"{name}={value}" for name, value in known),
        provider_version(device.name),
        runtime_version(),
        system(),
    )
    return Compiled(folder / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.form")


NO_FORM = Compiled()
"""Of a graph that is compiled each time."""


def _make_room(newest: Path) -> None:
    """Remove what was not used for the longest time until all fit, and what killed processes left."""
    for piece in newest.parent.glob("piece-*"):
        if time.time() - piece.stat().st_mtime > _STALE:
            shutil.rmtree(piece, ignore_errors=True)
    found = sorted(
        ((form.stat(), form) for form in newest.parent.glob("*.form")), key=lambda pair: pair[0].st_mtime
    )
    size = sum(told.st_size for told, _ in found)
    for told, form in found:
        if size <= _MOST or form == newest:
            continue
        form.unlink(missing_ok=True)
        size -= told.st_size

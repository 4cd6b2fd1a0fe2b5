"""What a bundle takes beyond weights and buffers on this device: measured at its first planned load, then kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from paceline.memory.model import Measured, Sizes
from paceline.runtime.bundle import Bundle, cache_folder
from paceline.runtime.device import kernels, runtime_version
from paceline.runtime.manifest import Part
from paceline.runtime.stats import peak_memory
from paceline.runtime.target import Model
from paceline.runtime.whole_file import write_atomically

_FILE = "memory.json"
_ENGINE = 9_500_000
"""What the first session brings: pages of ONNX Runtime and of the kernels, its pools."""
_GRAPH = 40
"""Bytes of structures for each byte of a graph's file."""
_MOST = 2**40
_TELLING = 128
"""Rows of a prompt pass from which on what it adds can be told from what was there."""


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def sizes_of(bundle: Bundle, part: Part) -> Sizes:
    """The sizes of a part that its memory depends on."""
    columns = [16 * w.shape[0] for w in part.weights.values() if len(w.shape) == 3]
    inner = [n for n in columns if n < min(part.vocab, 8 * part.hidden + 1)]
    files = bundle.manifest.files
    return Sizes(
        part.layers,
        part.kv_heads,
        part.head_dim,
        part.hidden,
        max(inner, default=6 * part.hidden),
        part.vocab,
        part.context,
        files[part.data].bytes if part.data in files else 0,
        files[part.graph].bytes,
    )


def estimate(sizes: Sizes, first: bool) -> Measured:
    """Before anything was measured."""
    return Measured(_ENGINE * first + _GRAPH * sizes.graph + 500_000, sizes.activations(1))


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement holds for."""

    bundle: Bundle
    part: Part
    device: str
    threads: int

    def text(self) -> str:
        """A digest that changes with the files, the device and the versions of what runs them."""
        files = self.bundle.manifest.files
        parts = (
            files[self.part.graph].sha256,
            files[self.part.data].sha256 if self.part.data in files else "",
            self.device,
            str(self.threads),
            kernels().in_use,
            runtime_version(),
            platform.platform(),
        )
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def weigh(key: Key, opened: int, model: Model) -> None:
    """Measure the overheads of a model at its first planned load, in one prompt pass, and remember them.

    opened: what opening the graph added to the process, weights included. The model's buffers must be resident, and
    no session of another bundle open: what sessions share would be counted to neither.
    """
    rows = max(min(model.chunk, model.context - 1), 2)
    known = recall(key)
    if known is not None and known.rows >= rows:
        return
    first = _growth(model, 2)
    chunk = _growth(model, rows)
    sizes = sizes_of(key.bundle, key.part)
    # What few rows add drowns in pages that are there already.
    per_row = max(chunk / rows, 0.0 if rows >= _TELLING else sizes.activations(1))
    remember(key, Measured(max(opened - sizes.weights, 0) + first, per_row, rows))


def _growth(model: Model, rows: int) -> int:
    """What a prompt pass adds to the process at its highest."""
    before, highest = resident(), peak_memory() or 0
    model.prefill([0] * min(rows, model.context))
    model.rewind(0)
    peak = peak_memory() or 0
    return max(resident() - before, peak - before if peak > highest else 0, 0)


def recall(key: Key) -> Measured | None:
    """What was measured before; None where nothing was, or where the file makes no sense."""
    found = _read().get(key.text())
    if not isinstance(found, list) or len(found) != 3:
        return None
    session, per_row, rows = found
    if not all(isinstance(number, int | float) and 0 <= number < _MOST for number in found):
        return None
    return Measured(int(session), float(per_row), int(rows))


def remember(key: Key, measured: Measured) -> None:
    """Keep it in the user's cache folder; a folder that cannot be written costs only a new measurement."""
    path = _path()
    if path is None:
        return
    known = _read()
    known[key.text()] = list(measured)
    try:
        write_atomically(path, json.dumps(dict(list(known.items())[-500:])).encode())
    except OSError:
        return


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / _FILE


def _read() -> dict[str, object]:
    path = _path()
    try:
        found = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

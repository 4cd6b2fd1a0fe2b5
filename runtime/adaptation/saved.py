"""What a draft model has learnt, kept from session to session: a file for each user and pair of draft model and target.

It holds adapter weights and a few counts; no text, no token of one. File: a digest (sha256) of all that follows, and
that as MessagePack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.pupil import Counted, Pupil
from paceline.runtime.bundle.measurements import cache_folder
from paceline.runtime.bundle.whole_file import alone, write_atomically

_FOLDER, _VERSION, _DIGEST, _LARGEST = "adapters", 1, 32, 1 << 28
Floats = npt.NDArray[np.float32]


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    pair: str
    steps: int
    accepted: int
    tested: int
    adapters: dict[str, bytes]


class SavedAdapters:
    """The file of one pair. pair: names the weights of the draft model and of the target, and the adapters' rank."""

    def __init__(self, pair: str) -> None:
        self._pair = pair
        folder = cache_folder()
        name = hashlib.sha256(pair.encode()).hexdigest()[:32]
        self.path = None if folder is None else folder / _FOLDER / f"{name}.adapters"
        self.fault: str | None = None
        """Why the file that is there is not used; None where it is, or where there is none."""
        self._steps = 0

    @property
    def bytes(self) -> int | None:
        """Size of the file; None where there is none."""
        try:
            return None if self.path is None else self.path.stat().st_size
        except OSError:
            return None

    def load(self, pupil: Pupil) -> None:
        """Give the pupil what was saved; where that makes no sense it begins anew, and `fault` says why."""
        self.fault = None
        try:
            saved = self._read()
            if saved is not None:
                arrays = _arrays(saved.adapters, pupil.step.adapters)
                counted = Counted(min(saved.accepted, saved.tested), saved.tested)
                pupil.put(arrays, max(saved.steps, 1), counted)
                self._steps = pupil.step.steps
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            self.fault = f"{self.path} is not used: {' '.join(str(error).split())}"
            pupil.forget()

    def save(self, pupil: Pupil) -> None:
        """Write what was learnt since, whole or not at all; of two sessions at once the one that learnt more stays.

        A folder that cannot be written costs only what was learnt.
        """
        if self.path is None or pupil.step.steps <= self._steps:
            return
        adapters = {name: array.astype("<f4").tobytes() for name, array in pupil.step.adapters.items()}
        body = msgspec.msgpack.encode(
            _Saved(
                _VERSION, self._pair, pupil.step.steps, pupil.before.accepted, pupil.before.tested, adapters
            )
        )
        try:
            with alone(self.path):
                if self._steps_there() > pupil.step.steps:
                    return
                write_atomically(self.path, hashlib.sha256(body).digest() + body)
        except OSError:
            return
        self._steps, self.fault = pupil.step.steps, None

    def delete(self) -> None:
        """Remove the file. Raises OSError where it cannot be removed."""
        self._steps, self.fault = 0, None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _steps_there(self) -> int:
        try:
            found = self._read()
        except (ValueError, msgspec.MsgspecError):
            return 0
        return 0 if found is None else found.steps

    def _read(self) -> _Saved | None:
        if self.path is None or not self.path.exists():
            return None
        if not self.path.is_file() or self.path.stat().st_size > _LARGEST:
            raise ValueError("it is no file of adapters")
        raw = self.path.read_bytes()
        if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
            raise ValueError("it is damaged (its checksum is wrong)")
        saved = msgspec.msgpack.decode(raw[_DIGEST:], type=_Saved)
        if saved.version != _VERSION:
            raise ValueError(f"it has version {saved.version}, and this paceline reads {_VERSION}")
        if saved.pair != self._pair:
            raise ValueError("it was learnt with another draft model, or for another target")
        return saved


def _arrays(saved: Mapping[str, bytes], wanted: Mapping[str, Floats]) -> dict[str, Floats]:
    """The adapters of a file. Raises ValueError where they are not those that are wanted."""
    found: dict[str, Floats] = {}
    for name, array in wanted.items():
        raw = saved.get(name, b"")
        if len(raw) != array.nbytes:
            raise ValueError(f"it has no adapter {name} of this shape")
        found[name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(array.shape)
    return found

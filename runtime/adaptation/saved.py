"""What a draft model has learnt, kept from session to session: a file for each user and pair of draft model and target.

It holds adapter weights and a few counts; no text, no token of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.pupil import Counted, Pupil
from paceline.runtime.bundle.learned_file import Content, LearnedFile
from paceline.runtime.bundle.measurements import in_cache_folder
from paceline.runtime.bundle.whole_file import alone
from paceline.runtime.manifest import Manifest, Part

_KIND, _VERSION, _LARGEST = "adapters", 1, 1 << 28
Floats = npt.NDArray[np.float32]


class _Saved(Content, frozen=True, forbid_unknown_fields=True):
    steps: int
    accepted: int
    tested: int
    adapters: dict[str, bytes]


def folder_of_adapters() -> Path | None:
    """Where the files of all pairs lie, None where this user has no cache folder."""
    return in_cache_folder(_KIND)


def pair_of(manifest: Manifest, part: Part) -> str:
    """Names what adapters hold for: the weights of a draft model and of the target, and their shapes."""
    rank = " ".join(f"{label}{sizes}" for label, sizes in part.adapters.items())
    return f"{manifest.files[part.data].sha256} {rank} {manifest.files[manifest.target.data].sha256}"


class SavedAdapters:
    """The file of one pair. pair: see `pair_of`; None: there is no file, and none is written."""

    def __init__(self, pair: str | None) -> None:
        self._pair, self._file = pair or "", LearnedFile(_KIND, pair, _Saved, _VERSION, _LARGEST)
        self.fault: str | None = None
        """Why the file that is there is not used; None where it is, or where there is none."""
        self._steps = 0

    @property
    def path(self) -> Path | None:
        """None where this user has no cache folder."""
        return self._file.path

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
            saved = self._file.read()
            if saved is not None:
                arrays = _arrays(saved.adapters, pupil.step.adapters)
                counted = Counted(min(saved.accepted, saved.tested), saved.tested)
                pupil.put(arrays, max(saved.steps, 1), counted)
                self._steps = pupil.step.steps
        except (OSError, ValueError) as error:
            self._blame(error)
            pupil.forget()

    def save(self, pupil: Pupil) -> None:
        """Write what was learnt since, whole or not at all; of two sessions at once the one that learnt more stays.

        A folder that cannot be written costs only what was learnt.
        """
        if self.path is None or pupil.step.steps <= self._steps:
            return
        adapters = {name: array.astype("<f4").tobytes() for name, array in pupil.step.adapters.items()}
        before, steps = pupil.before, pupil.step.steps
        content = _Saved(_VERSION, self._pair, steps, before.accepted, before.tested, adapters)
        try:
            with alone(self.path):
                if self.steps() > pupil.step.steps:
                    return
                self._file.write(content)
        except OSError:
            return
        self._steps, self.fault = pupil.step.steps, None

    def delete(self) -> None:
        """Remove the file. Raises OSError where it cannot be removed."""
        self._steps, self.fault = 0, None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def steps(self) -> int:
        """Steps that the file has learnt; 0 where there is none, or none that is used: then `fault` says why."""
        try:
            found = self._file.read()
        except (OSError, ValueError) as error:
            self._blame(error)
            return 0
        return 0 if found is None else found.steps

    def _blame(self, error: Exception) -> None:
        self.fault = f"{self.path} is not used: {' '.join(str(error).split())}"


def _arrays(saved: Mapping[str, bytes], wanted: Mapping[str, Floats]) -> dict[str, Floats]:
    """The adapters of a file. Raises ValueError where they are not those that are wanted."""
    found: dict[str, Floats] = {}
    for name, array in wanted.items():
        raw = saved.get(name, b"")
        if len(raw) != array.nbytes:
            raise ValueError(f"it has no adapter {name} of this shape")
        found[name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(array.shape)
    return found

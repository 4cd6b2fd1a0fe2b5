"""The numbers that a GGUF file says about its architecture, read by name; what nobody read is a reason to refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paceline.export.errors import ExportError
from paceline.export.gguf.reader import Gguf

_WITHOUT_EFFECT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "embedding_length_out"}
_LARGEST = 2**31 - 1


class Keys:
    """Keys of one architecture, without its name in front."""

    def __init__(self, file: Gguf, architecture: str) -> None:
        self.file, self._architecture = file, architecture
        self._read: set[str] = set()

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor of this name."""
        return tensor in self.file.tensors

    def value(self, name: str) -> Any:
        """What a key says, None where it is absent; one number for an array of equal ones. Raises ExportError."""
        self._read.add(name)
        found = self.file.metadata.get(f"{self._architecture}.{name}")
        if isinstance(found, np.ndarray):
            kinds = np.unique(found).tolist()
            if len(kinds) != 1:
                raise self.wrong(name, "differs from layer to layer, which is not carried")
            return kinds[0]
        return found

    def array(self, name: str) -> list[Any] | None:
        """An array, None where it is absent or one number."""
        self._read.add(name)
        found = self.file.metadata.get(f"{self._architecture}.{name}")
        return found.tolist() if isinstance(found, np.ndarray) else None

    def whole(self, name: str, otherwise: int | None = None) -> int:
        """A size, at least 1. Raises ExportError."""
        found = self.value(name)
        if found is None and otherwise is not None:
            return otherwise
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= _LARGEST:
            raise self.wrong(name, f"{_said(found)}, and must be a whole number from 1 to {_LARGEST}")
        return found

    def number(self, name: str, otherwise: float | None = None) -> float:
        """A number above 0. Raises ExportError."""
        found = self.value(name)
        if found is None and otherwise is not None:
            return otherwise
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
            raise self.wrong(name, f"{_said(found)}, and must be a number above 0")
        return float(found)

    def optional(self, name: str) -> float | None:
        """A number, None where it is absent or 0. Raises ExportError."""
        return None if self.value(name) in (None, 0) else self.number(name)

    def check_all_read(self) -> None:
        """Raise ExportError where a key was not read that may change what the model computes."""
        for key, value in self.file.metadata.items():
            architecture, _, name = key.partition(".")
            if architecture != self._architecture or name in self._read | _WITHOUT_EFFECT:
                continue
            if isinstance(value, np.ndarray | list) or value not in (0, False, ""):
                raise self.wrong(name, f"({str(value)[:40]}) is not carried")

    def expect(self, name: str, value: int) -> None:
        """Raise ExportError where a key says anything else than this number."""
        found = self.value(name)
        if found not in (None, 0, value):
            raise self.wrong(name, f"is {str(found)[:40]}, and only {value} is carried")

    def wrong(self, name: str, what: str) -> ExportError:
        """An error about one key."""
        return ExportError(
            f"{self.file.path}: {self._architecture}.{name} {what}: export the Hugging Face model that the file "
            "was made from"
        )


def _said(found: Any) -> str:
    return "is missing" if found is None else f"is {str(found)[:40]!r}"

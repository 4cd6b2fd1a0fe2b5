"""Values in the memory of a device: this process does not see them, and no run copies them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

Turn = AbstractContextManager[object]


class DeviceValue:
    """A tensor in a device's memory, all zero at first, which graphs there are bound to.

    value: ONNX Runtime's own, made under `turn`, the lock of its provider. It goes under that lock too, whoever lets go
    of it last.
    """

    def __init__(self, value: Any, shape: Sequence[int], kind: npt.DTypeLike, turn: Turn) -> None:
        self._turn = turn
        self.value = value
        value.update_inplace(np.zeros(shape, kind))

    def read(self) -> npt.NDArray[Any]:
        """A copy of what it holds."""
        with self._turn:
            return np.array(self.value.numpy())

    def __del__(self) -> None:
        with self._turn:
            del self.value

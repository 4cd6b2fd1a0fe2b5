"""Adapter weights: inputs of a graph, so that they can change between two passes while all else is shared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.runtime.manifest import Part


def adapters_of(part: Part) -> dict[str, npt.NDArray[np.float32]]:
    """Arrays that a session binds and owns: zero at first, which changes nothing; whoever learns writes into them."""
    return {name: np.zeros(shape, np.float32) for name, shape in part.adapters.items()}

"""A head with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.export.heads.config import TRAINED_HERE, HeadConfig, Style
from paceline.export.passes import Floats


@dataclass(frozen=True, slots=True)
class Head:
    """A head whose weights are those that its configuration describes.

    weights: float32 by the names of a checkpoint; a published head may lack its table of tokens and its LM head, which
    are the target's then. vocabulary: ids of the target, int64[Vd], ascending.
    """

    config: HeadConfig
    weights: Mapping[str, Floats]
    vocabulary: npt.NDArray[np.int64]
    licence: str
    style: Style = TRAINED_HERE

    @property
    def parameters(self) -> int:
        """Numbers in its weights."""
        return sum(values.size for values in self.weights.values())

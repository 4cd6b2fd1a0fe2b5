"""What a draft with the model's own layers is to be made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHARE, TRIALS = 0.4, 200


@dataclass(frozen=True, slots=True)
class SkipWish:
    """text: what the model is used for, as a text that it goes on with, or as prompts that it answers. share: of the
    bytes of all blocks, how many are left out. trials: sets of blocks that are tried.
    """

    text: str | Sequence[str]
    share: float = SHARE
    trials: int = TRIALS
    seed: int = 0

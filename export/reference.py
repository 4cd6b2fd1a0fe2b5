"""The torch model with its own attention: what every graph of it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from paceline.export.rotary import fixed_frequencies, length_dependent
from paceline.export.source import Loaded
from paceline.runtime.manifest import Rope
from paceline.runtime.model.rope import frequencies


@contextmanager
def eager(loaded: Loaded, rope: Rope | None, context: int) -> Iterator[PreTrainedModel]:
    """Within this block the model runs its own attention code.

    Rotary frequencies that depend on the length are those of a session of `context` tokens.
    """
    model = loaded.model
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if rope is None:
            yield model
        else:
            inv_freq, scale = frequencies(rope, context)
            tensors = torch.from_numpy(inv_freq), torch.tensor([scale])
            with fixed_frequencies(length_dependent(model), *tensors):
                yield model
    finally:
        model.set_attn_implementation(ours)

"""The largest input of every token that the projections of a model read on a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_HUGE = 20.0
"""Times the usual token's largest input from which one token's spoils the block that it stands in."""

Peaks = dict[str, list[Tensor]]
"""Of each projection, by the name of its weight, in the order in which they ran: float32[tokens] of every pass."""


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[Peaks]:
    """Collect the peaks of every projection while the model runs within this block."""
    found: Peaks = {}

    def reader(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def read(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, []).append(inputs[0].detach().flatten(0, -2).abs().amax(1))

        return module.register_forward_pre_hook(read)

    projections = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    handles = [reader(f"{name}.weight", module) for name, module in projections]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def huge(peaks: list[Tensor]) -> bool:
    """Whether some token's largest input is far above the usual token's."""
    every = torch.cat(peaks)
    return bool(every.max() > _HUGE * every.median())

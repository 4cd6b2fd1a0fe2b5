"""What the projections of a model read on a text: how large each input is, and whether single tokens are huge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_HUGE = 20.0
"""A token whose largest input is so many times the usual token's spoils the inputs in its block: see docs/bundle.md."""


@dataclass(slots=True)
class Inputs:
    """Of one projection with K inputs."""

    squares: Tensor
    """Sum over tokens, float32[K]."""
    peaks: list[Tensor] = field(default_factory=list)
    """The largest input of every token."""

    def importance(self) -> Tensor:
        """Second moment of each input, float32[K]."""
        return self.squares / max(1, sum(map(len, self.peaks)))

    def huge(self) -> bool:
        """Whether some token's largest input is far above the usual one."""
        peaks = torch.cat(self.peaks)
        return bool(peaks.max() > _HUGE * peaks.median())


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[dict[str, Inputs]]:
    """Collect what every projection reads while the model runs within this block, by the name of its weight."""
    found: dict[str, Inputs] = {}

    def reader(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def read(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).float()
            own = found.setdefault(name, Inputs(torch.zeros(x.shape[1])))
            own.squares += x.square().sum(0)
            own.peaks.append(x.abs().amax(1))

        return module.register_forward_pre_hook(read)

    projections = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    handles = [reader(f"{name}.weight", module) for name, module in projections]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

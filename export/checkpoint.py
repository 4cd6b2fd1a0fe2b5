"""The weights of a checkpoint against the model that they were read into."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from paceline.export.errors import ExportError


def check_numbers(folder: Path, model: nn.Module) -> None:
    """Raise ExportError where a tensor holds NaN or infinity."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ExportError(
                f"{folder}: {name} holds {count} of {tensor.numel()} numbers that are NaN or infinite: "
                "fetch the weights again, or take a checkpoint from before they were damaged"
            )


def left_out(names: Iterable[str]) -> tuple[str, ...]:
    """One note for each kind of tensors that the configuration does not know; layers are one kind."""
    kinds = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names)
    return tuple(
        f"{kind} ({count} tensor{'s' * (count > 1)}) left out: the model that config.json describes has no such weights"
        for kind, count in sorted(kinds.items())
    )

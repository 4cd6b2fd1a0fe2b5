"""The weights that a bundle holds, back in the torch model that it was made from: what its graph must compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paceline.export.mixing import Choose
from paceline.export.passes import Floats
from paceline.export.quantize import Quantised

_CHUNK = 1 << 22


@dataclass(slots=True)
class StoredWeights:
    """Codes by parameter name, kept until they are put back: a byte for each weight."""

    _codes: dict[str, Quantised] = field(default_factory=dict)

    def seen(self, choose: Choose) -> Choose:
        """The same choice, of which this takes note."""

        def chosen(name: str, values: Floats) -> Quantised | None:
            found = choose(name, values)
            if found is not None:
                self._codes[name] = found
            return found

        return chosen

    def put_back(self, model: PreTrainedModel, *, shared: bool) -> None:
        """Give every parameter the values that its codes stand for, and forget the codes.

        shared: whether a table that is also the head reads the head's codes; otherwise the table keeps its values.
        """
        table: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not shared and head is not None and head.weight is table.weight:
            head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=False)
        while self._codes:
            name, codes = self._codes.popitem()
            place, _, last = name.rpartition(".")
            module = model.get_submodule(place)
            weight = getattr(module, last).detach()
            _fill(weight if isinstance(module, Conv1D) else weight.T, codes)


def _fill(matrix: Tensor, codes: Quantised) -> None:
    """Write the values [K, N] into a view, some columns at a time."""
    n = matrix.shape[1]
    step = max(1, _CHUNK // codes.k)
    for start in range(0, n, step):
        stop = min(n, start + step)
        matrix[:, start:stop] = torch.from_numpy(codes.dense(start, stop)).T

"""The torch model that a graph is compared with: what it answers, and the weights of the bundle put back into it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paceline.export.facts import facts
from paceline.export.quantize import Quantised
from paceline.export.reference import eager
from paceline.export.source import Loaded
from paceline.export.trial import Rows

_CHUNK = 1 << 22


def logits_of(loaded: Loaded, tokens: Sequence[int], within: int) -> Rows:
    """Torch's logits for every position of one sequence, float32[T, V], rotated as in a text of `within` tokens."""
    with eager(loaded, facts(loaded).rope, within) as model, torch.no_grad():
        out = model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    rows: Rows = out.logits[0].float().numpy()
    return rows


def forget_weights(loaded: Loaded) -> None:
    """Free the weights of a model that is not run any more.

    What traced the model keeps it for as long as the process lives (rewrite rules remember the graph they saw
    last), so every tensor over the same memory is emptied in place.
    """
    owned = {_address(parameter) for parameter in loaded.model.parameters()} - {0}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter) and _address(found) in owned:
            found.data = torch.empty(0)
    gc.collect()


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" and not tensor.is_sparse else 0


def put_back(model: PreTrainedModel, codes: dict[str, Quantised], *, shared: bool) -> None:
    """Give every parameter the values that its codes stand for; `codes` is empty afterwards.

    shared: whether a table that is also the head reads the head's codes; otherwise the table keeps its values.
    """
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not shared and head is not None and head.weight is table.weight:
        head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    while codes:
        name, found = codes.popitem()
        place, _, last = name.rpartition(".")
        module = model.get_submodule(place)
        weight = getattr(module, last).detach()
        _fill(weight if isinstance(module, Conv1D) else weight.T, found)


def _fill(matrix: Tensor, codes: Quantised) -> None:
    """Write the values [K, N] into a view, some columns at a time."""
    n = matrix.shape[1]
    step = max(1, _CHUNK // codes.k)
    for start in range(0, n, step):
        stop = min(n, start + step)
        matrix[:, start:stop] = torch.from_numpy(codes.dense(start, stop)).T

"""Texts that a model in torch goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Id = TypeVar("Id", bound=np.integer[Any])


def continued(
    model: Any, prompts: Sequence[npt.NDArray[Id]], ends: Sequence[int], most: int, **sampling: Any
) -> list[npt.NDArray[Id]]:
    """Prompts (int[N] of any lengths) and what the model writes after each, of at most so many tokens.

    An end stays in its text and nothing behind it. sampling: as for `generate` of transformers.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), ends[0])
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        seen[row, width - len(prompt) :] = 1
    ends = list(ends)
    with torch.no_grad():
        out = model.generate(
            ids.to(model.device),
            attention_mask=seen.to(model.device),
            max_new_tokens=most,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **sampling,
        )
    texts = []
    for row, prompt in zip(out.cpu().numpy(), prompts, strict=True):
        written = row[width:]
        stop = np.flatnonzero(np.isin(written, ends))
        cut = written[: stop[0] + 1] if len(stop) else written
        texts.append(np.concatenate((prompt, cut.astype(prompt.dtype))))
    return texts

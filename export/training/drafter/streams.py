"""Streams of a draft model (arXiv 2402.11131): rows behind a place of a text, each for a token further on.

A stream is one more id, behind those of the target, at the place of the token before the one that it says. It sees the
text up to where it begins and the streams before it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SHARE = 0.25
"""Of the places in an answer so many have streams at a time, others at the next epoch."""
DECAY = 0.8
"""What a stream says counts so much of what the one before says."""
Places = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """What a model runs: tokens and positions int64[B, R], and what each row sees, float32[B, 1, R, R], 0 or the least
    number."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor


def begun(length: int, prompt: int, streams: int, rng: np.random.Generator) -> Places:
    """Places of a text where streams begin, ascending, so that the text knows what each of them is to say."""
    open_to = np.arange(prompt - 1, length - 1 - streams)
    count = math.ceil(SHARE * len(open_to))
    return np.sort(rng.choice(open_to, count, replace=False))


def rows_of(
    texts: Sequence[npt.NDArray[np.int32]], places: Sequence[Places], streams: int, first: int
) -> Rows:
    """Texts, and behind each the streams that begin at its places, place after place. first: id of the first stream."""
    width, most = max(map(len, texts)), streams * max(map(len, places))
    size = width + most
    tokens, positions = torch.zeros(2, len(texts), size, dtype=torch.int64)
    seen = torch.zeros(len(texts), size, size, dtype=torch.bool)
    seen[:, :width, :width] = torch.ones(width, width, dtype=torch.bool).tril()
    steps, order = torch.arange(streams), torch.arange(most)
    together = order[:, None] // max(streams, 1) == order // max(streams, 1)
    seen[:, width:, width:] = together & (order <= order[:, None])
    for row, (text, at) in enumerate(zip(texts, places, strict=True)):
        tokens[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
        positions[row, :width] = torch.arange(width)
        begins, end = torch.from_numpy(at), width + streams * len(at)
        tokens[row, width:end] = (first + steps).repeat(len(at))
        positions[row, width:end] = (begins[:, None] + 1 + steps).flatten()
        seen[row, width:end, :width] = (torch.arange(width) <= begins[:, None]).repeat_interleave(streams, 0)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    return Rows(tokens, positions, mask[:, None])


def said_at(places: Places, streams: int) -> Places:
    """The places whose laws the streams of these places say, place after place."""
    said: Places = (places[:, None] + 1 + np.arange(streams)).reshape(-1)
    return said

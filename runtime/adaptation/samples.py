"""From an answer and its laws to samples of a training step, in the draft model's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.contract import sample_shapes
from paceline.runtime.adaptation.laws import Episode
from paceline.runtime.part import WINDOW
from paceline.runtime.translation.reading import Reading
from paceline.runtime.translation.sides import Sides

Sample = dict[str, npt.NDArray[Any]]
RUNS = 0.2
"""Weight of the likelihood of the pieces of a token, as OmniDraft has it (2507.02659)."""
_CONTEXT = 16
"""Rows of a window that are only read, where it does not begin with the text."""


def samples_of(episode: Episode, vocab: int, sides: Sides | None) -> Iterator[Sample]:
    """Windows of the text with all laws that fall into them. vocab: of the draft model; sides: None where it is the
    target's.
    """
    tokens, ends = _aligned(episode, vocab, sides)
    width = int(episode.ids.max()) + 1
    to_draft = np.where(np.arange(width) < vocab, np.arange(width), -1)
    if sides is not None:
        known = sides.mapping.to_draft[:width]
        to_draft = np.concatenate([known, np.full(width - len(known), -1)]).astype(np.int64)
    rows = np.array([ends[place + 1] - 1 for place in episode.places.tolist()])
    ids, probs = _mapped(episode, to_draft)
    runs = {} if sides is None else _labels(tokens, ends, episode.places.tolist())
    start = max(int(rows.min()) - _CONTEXT, 0)
    while start <= int(rows.max()):
        first = start + (_CONTEXT if start else 0)
        inside = (rows >= first) & (rows < start + WINDOW)
        if inside.any():
            yield _window(tokens, start, first, rows[inside], ids[inside], probs[inside], runs)
        start += WINDOW - _CONTEXT


def _aligned(episode: Episode, vocab: int, sides: Sides | None) -> tuple[list[int], dict[int, int]]:
    """The text in draft tokens, and how many these are after so many of the target's."""
    tokens = episode.tokens
    if sides is None:
        return [min(token, vocab - 1) for token in tokens], {count: count for count in range(len(tokens) + 1)}
    reading, ends, first = Reading(sides, sides.ngrams), dict[int, int](), int(episode.places[0]) + 1
    reading.open(tokens, episode.asked, episode.prompt)
    for count in range(first, len(tokens) + 1):
        ends[count] = len(reading.follow(tokens[:count]))
    return list(reading.tokens), ends


def _mapped(
    episode: Episode, to_draft: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids and chances in the draft model's vocabulary; those of tokens that it lacks are 0, and of two tokens that are
    one there the first counts.
    """
    ids = to_draft[episode.ids]
    probs = np.where(ids >= 0, episode.probs, np.float32(0))
    order = np.argsort(ids, axis=1, kind="stable")
    lined = np.take_along_axis(ids, order, axis=1)
    again = np.zeros_like(ids, bool)
    np.put_along_axis(again, order[:, 1:], lined[:, 1:] == lined[:, :-1], axis=1)
    return np.maximum(ids, 0), np.where(again, np.float32(0), probs)


def _labels(tokens: list[int], ends: dict[int, int], places: list[int]) -> dict[int, int]:
    """The next piece by row, where several pieces are the next token of the target."""
    found: dict[int, int] = {}
    for place in places:
        begin, end = ends[place + 1], ends.get(place + 2, 0)
        if end - begin > 1:
            found |= {row - 1: tokens[row] for row in range(begin, end)}
    return found


def _window(
    tokens: list[int],
    start: int,
    first: int,
    rows: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    probs: npt.NDArray[np.float32],
    runs: dict[int, int],
) -> Sample:
    sample = {name: np.zeros(shape, kind) for name, (kind, shape) in sample_shapes().items()}
    part = tokens[start : start + WINDOW]
    sample["token_ids"][: len(part)] = part
    at, count = rows - start, ids.shape[1]
    sample["ids"][at, :count], sample["probs"][at, :count] = ids, probs
    sample["weight"][at] = 1
    for row in range(first, start + len(part)):
        if row in runs:
            sample["label"][row - start], sample["label_weight"][row - start] = runs[row], RUNS
    return {
        name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in sample.items()
    }

"""What a target thinks of a text: from the states that came with its answer, or by a pass of its bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.export.check import part_logits
from paceline.export.training.heads.batches import Halves
from paceline.runtime.bundle.bundle import Bundle

Law = Callable[[slice], Tensor]


@dataclass(frozen=True, slots=True)
class Spoken:
    """tokens int32[N], the first `prompt` of them asked.

    taps float16[N, 1, H]: the target's last hidden states; [N, 0, 0] where nobody kept them.
    """

    tokens: npt.NDArray[np.int32]
    prompt: int
    taps: Halves


def untapped(tokens: Sequence[int] | npt.NDArray[np.int32], prompt: int) -> Spoken:
    """A text without states."""
    return Spoken(np.asarray(tokens, np.int32), prompt, np.zeros((len(tokens), 0, 0), np.float16))


class Teacher:
    """The laws of a bundle's target, quantised as it runs.

    head float32[V, H]: its LM head, for texts with states; None where it has none that can be read. longest: tokens of
    a text.
    """

    def __init__(self, bundle: Bundle, head: Tensor | None, longest: int, threads: int) -> None:
        self._bundle, self._head = bundle, head
        self.longest, self._threads = longest, threads
        self._pass: Callable[[Sequence[int]], npt.NDArray[np.float32]] | None = None

    def law(self, spoken: Spoken, places: npt.NDArray[np.int64]) -> Law:
        """Of the tokens after `places`: gives float32[n, V] for a slice of them."""
        if self._head is not None and spoken.taps.shape[1]:
            head, states = self._head, torch.from_numpy(spoken.taps[places, -1]).to(self._head.device)
            return lambda part: (states[part].float() @ head.T).softmax(-1)
        logits = self._read(spoken.tokens[: int(places.max()) + 1].tolist())
        return lambda part: torch.from_numpy(logits[places[part]]).softmax(-1)

    def _read(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        if self._pass is None:
            part = self._bundle.manifest.target
            self._pass = part_logits(self._bundle.folder, part, self.longest, threads=self._threads)
        return self._pass(tokens)

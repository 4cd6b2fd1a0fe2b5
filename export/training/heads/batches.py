"""Batches of conversations: one a row, of like length together, with the places where drafts may begin.

Pair i is the features of row i and token i + 1; a draft that begins at pair a has token a + 1 as its root, and its
level d guesses token a + 1 + d, of which the hidden state of row a + d knows the target's law.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]


class Conversation(Protocol):
    """tokens int32[N], the first `prompt` of them asked; taps float16[N, K, H], of which the last is `hidden`."""

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Token ids."""

    @property
    def prompt(self) -> int:
        """How many of them are the prompt."""

    @property
    def taps(self) -> Halves:
        """Hidden states; the last row, which was never run, is not used."""


B = TypeVar("B")
C = TypeVar("C", bound=Conversation)


class Batch(NamedTuple):
    """Rows to learn from, of which the ends of shorter ones are zeros.

    tokens int64[R, N]; lengths int64[R]; features float16[R, N, taps, H], those that the head reads; hidden
    float16[R, N, H] of the target; anchors int64[R, M] in random order, so that the first ones are a sample; levels
    int64[R, M]: how many levels of a draft from there the text knows, 0 where a row has fewer anchors. seed: of what
    else is left to chance.
    """

    tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    features: Halves
    hidden: Halves
    anchors: npt.NDArray[np.int64]
    levels: npt.NDArray[np.int64]
    seed: int = 0


def held_out(conversations: Sequence[C], one_in: int) -> tuple[list[C], list[C]]:
    """Conversations to learn from and to measure on, by a hash of the prompt: what is there later changes nothing.

    Raises ValueError where there are too few to have both.
    """
    learnt, kept = list[C](), list[C]()
    for conversation in conversations:
        prompt = conversation.tokens[: conversation.prompt].astype("<i4").tobytes()
        (learnt if zlib.crc32(prompt) % one_in else kept).append(conversation)
    if learnt and not kept:
        kept.append(learnt.pop())
    if not learnt:
        count = "1 answer is" if len(conversations) == 1 else f"{len(conversations)} answers are"
        raise ValueError(f"{count} too few to learn from: give more prompts, or more --tokens")
    return learnt, kept


def anchors_of(conversation: Conversation, longest: int) -> npt.NDArray[np.int64]:
    """Pairs whose next token but one belongs to the answer, and whose law is known."""
    count = min(len(conversation.tokens), longest)
    return np.arange(max(0, conversation.prompt - 2), max(0, count - 2))


class Groups(Generic[B]):
    """The batches of epochs, in an order that is a function of (seed, epoch) alone.

    size: tokens of a batch, about; longest: of a conversation, of which the rest is left out; make: a batch of the
    conversations beside each other, with a random state of its own.
    """

    def __init__(
        self,
        conversations: Sequence[C],
        size: int,
        longest: int,
        seed: int,
        make: Callable[[list[C], np.random.Generator], B],
    ) -> None:
        self._conversations: list[Any] = [c for c in conversations if len(anchors_of(c, longest))]
        self._lengths = np.array([min(len(c.tokens), longest) for c in self._conversations])
        self._size, self._seed, self._make = size, seed, make
        if not self._conversations:
            raise ValueError("no answer is long enough to draft in: give other prompts")
        self.per_epoch = len(self._groups(0))

    @property
    def tokens(self) -> int:
        """Tokens of an epoch, prompts included."""
        return int(self._lengths.sum())

    def epoch(self, number: int, skip: int = 0) -> Iterator[B]:
        """The batches of one epoch but for the first `skip`."""
        for place, rows in enumerate(self._groups(number)[skip:], skip):
            rng = np.random.default_rng([self._seed, number, place])
            yield self._make([self._conversations[i] for i in rows], rng)

    def endless(self, step: int) -> Iterator[B]:
        """All batches from a step on."""
        epoch, skip = divmod(step, self.per_epoch)
        while True:
            yield from self.epoch(epoch, skip)
            epoch, skip = epoch + 1, 0

    def _groups(self, epoch: int) -> list[list[int]]:
        """Numbers of conversations, of like length together; a conversation longer than a batch is one."""
        rng = np.random.default_rng([self._seed, epoch])
        # The same cuts in each epoch, so that all have the same number of batches; other neighbours within a length.
        order = np.lexsort((rng.random(len(self._lengths)), self._lengths))
        groups: list[list[int]] = [[]]
        for place in order.tolist():
            if groups[-1] and (len(groups[-1]) + 1) * int(self._lengths[place]) > self._size:
                groups.append([])
            groups[-1].append(place)
        return [groups[i] for i in rng.permutation(len(groups))]


class Batches(Groups[Batch]):
    """Batches of a head. reads: which of the taps are its features; prompts: see `make_batch`."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        size: int,
        longest: int,
        reads: Sequence[int],
        seed: int,
        prompts: float = 0.0,
    ) -> None:
        super().__init__(
            conversations, size, longest, seed, lambda c, rng: make_batch(c, longest, reads, rng, prompts)
        )


def make_batch(
    conversations: Sequence[Conversation],
    longest: int,
    reads: Sequence[int],
    rng: np.random.Generator | None = None,
    prompts: float = 0.0,
) -> Batch:
    """Conversations beside each other; without `rng` anchors stand in their order, and are those of answers alone.

    prompts: share of the places in prompts that are learnt too, others each time.
    """
    rows, width = len(conversations), min(longest, max(len(c.tokens) for c in conversations))
    hidden = conversations[0].taps.shape[-1]
    places = [anchors_of(c, longest) for c in conversations]
    if rng is not None:
        places = [
            rng.permutation([*found, *np.flatnonzero(rng.random(int(found[0])) < prompts)])
            for found in places
        ]
    most = max(map(len, places))
    tokens = np.zeros((rows, width), np.int64)
    features = np.zeros((rows, width, len(reads), hidden), np.float16)
    last = np.zeros((rows, width, hidden), np.float16)
    anchors, levels = np.zeros((rows, most), np.int64), np.zeros((rows, most), np.int64)
    for row, (conversation, found) in enumerate(zip(conversations, places, strict=True)):
        count = min(len(conversation.tokens), width)
        tokens[row, :count] = conversation.tokens[:count]
        features[row, : count - 1] = conversation.taps[: count - 1, reads]
        last[row, : count - 1] = conversation.taps[: count - 1, -1]
        anchors[row, : len(found)] = found
        levels[row, : len(found)] = count - 2 - found
    lengths = np.array([min(len(c.tokens), width) for c in conversations])
    seed = 0 if rng is None else int(rng.integers(1 << 62))
    return Batch(tokens, lengths, features, last, anchors, levels, seed)

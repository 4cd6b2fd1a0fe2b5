"""Which tokens a head can draft: those that the target writes most often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from paceline.export.training.heads.batches import Conversation


def choose_vocabulary(
    conversations: Iterable[Conversation], size: int, target_vocab: int, always: Sequence[int] = ()
) -> npt.NDArray[np.int32]:
    """The `size` ids that stand most often in answers, `always` among them, ascending; all ids where there are fewer.

    Ties, and tokens that no answer has, go by their id: vocabularies number what is frequent first.
    """
    counts = counted(conversations, target_vocab)
    counts[list(always)] = counts.sum() + 1
    order = np.argsort(-counts, kind="stable")[: min(size, target_vocab)]
    return np.sort(order).astype(np.int32)


def coverage(
    conversations: Iterable[Conversation], vocabulary: npt.NDArray[np.int32], target_vocab: int
) -> float:
    """The share of the tokens of answers that are in it."""
    counts = counted(conversations, target_vocab)
    return float(counts[vocabulary].sum() / max(1, counts.sum()))


def counted(conversations: Iterable[Conversation], target_vocab: int) -> npt.NDArray[np.int64]:
    """How often each id stands in the answers."""
    counts = np.zeros(target_vocab, np.int64)
    for conversation in conversations:
        counts += np.bincount(conversation.tokens[conversation.prompt :], minlength=target_vocab)
    return counts

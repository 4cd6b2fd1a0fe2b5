"""What a small model learns from, row by row: stories as they are, and stories retold as the answer to a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from paceline.export.training.corpus import END_OF_TEXT, Corpus, begins, goes_in_circles
from paceline.export.training.instructions import Pair, first_places, noun_lexicon, pair_for
from paceline.export.training.vocabulary import ASSISTANT, END, SPECIALS, USER, id_of

if TYPE_CHECKING:
    from paceline.export.training.lm import Recipe

Tokens = npt.NDArray[np.uint16]
_WINDOW = 3000
"""Stories that are sorted by length together."""


class Batch(NamedTuple):
    """Rows to learn from: tokens[B, T + 1], and how much each next token counts, weights[B, T]."""

    tokens: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Document(NamedTuple):
    """Token ids of one text, and how much each counts when it is the next one."""

    ids: Tokens
    weights: npt.NDArray[np.float32]


class StoryStream:
    """Stories as token ids, each in a row of its own: some as they are, most as an answer to a request.

    An answer is a story retold (`retell`), so that names and things come from the request and not from habit;
    the request itself is not learnt. One answer in eight stands after another one, as in a conversation.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, context: int) -> None:
        self._tokenizer, self._recipe, self._context = tokenizer, recipe, context
        self._stories = [s for s in corpus.train if not goes_in_circles(s)] or list(corpus.train)
        self._nouns = noun_lexicon(corpus.train)
        self._specials = {name: id_of(tokenizer, name) for name in SPECIALS}
        sample = encode_all(tokenizer, corpus.train[:: max(1, len(corpus.train) // 500)])
        self.tokens_per_epoch = int(np.mean([len(i) + 20 for i in sample]) * len(self._stories))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Shuffled rows of one epoch, at most `batch * context` tokens together; a function of (seed, epoch) alone."""
        rng = np.random.default_rng([self._recipe.seed, epoch])
        order = rng.permutation(len(self._stories))
        for at in range(0, len(order), _WINDOW):
            documents = self._documents([self._stories[i] for i in order[at : at + _WINDOW]], rng)
            yield from batches_by_length(documents, self._recipe.batch * self._context, self._context, rng)

    def _documents(self, stories: Sequence[str], rng: np.random.Generator) -> list[Document]:
        start = Document(np.array([self._specials[END_OF_TEXT]], np.uint16), np.ones(1, np.float32))
        documents: list[Document] = []
        for story in stories:
            if rng.random() >= self._recipe.chat_share or not begins(story):
                raw = np.array(self._tokenizer.encode(story, add_special_tokens=False).ids, np.uint16)
                documents.append(_joined(start, Document(raw, np.ones(len(raw), np.float32)), start))
                continue
            told = self._answer(pair_for(story, self._nouns, rng))
            goes_on = documents and rng.random() < 0.125
            if goes_on and len(documents[-1].ids) + len(told.ids) <= self._context:
                documents[-1] = _joined(documents[-1], told)
            else:
                documents.append(_joined(start, told))
        return documents

    def _answer(self, pair: Pair) -> Document:
        """Request and story; where the story first says what the request names, it counts `emphasis` times.

        What comes second counts more, for it is forgotten more often, what comes third still more.
        """
        asked = self._tokenizer.encode(f"{USER}{pair.request}{END}{ASSISTANT}", add_special_tokens=False).ids
        told = self._tokenizer.encode(pair.story, add_special_tokens=False)
        weights = np.ones(len(told.ids), np.float32)
        begins = np.array([b for b, _ in told.offsets])
        for place, (first, last) in enumerate(first_places(pair.asked, pair.story)):
            named = slice(np.searchsorted(begins, first - 1), np.searchsorted(begins, last))
            weights[named] = self._recipe.emphasis * (1.0 + 1.5 * place)
        ids = np.array([*asked, *told.ids, self._specials[END]], np.uint16)
        return Document(
            ids, np.concatenate((np.zeros(len(asked), np.float32), weights, np.ones(1, np.float32)))
        )


def _joined(*parts: Document) -> Document:
    return Document(np.concatenate([p.ids for p in parts]), np.concatenate([p.weights for p in parts]))


def batches_by_length(
    documents: Sequence[Document], size: int, context: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Documents of like length together, in batches of about `size` tokens, in random order; longer ones are cut."""
    lengths = np.minimum([len(d.ids) for d in documents], context + 1)
    order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")
    groups: list[list[int]] = [[]]
    for place in order:
        if groups[-1] and (len(groups[-1]) + 1) * (lengths[place] - 1) > size:
            groups.append([])
        groups[-1].append(place)
    for turn in rng.permutation(len(groups)):
        rows = groups[turn]
        width = max(2, max(lengths[i] for i in rows))
        tokens = np.zeros((len(rows), width), np.int64)
        weights = np.zeros((len(rows), width), np.float32)
        for row, i in enumerate(rows):
            tokens[row, : lengths[i]] = documents[i].ids[: lengths[i]]
            weights[row, : lengths[i]] = documents[i].weights[: lengths[i]]
        yield Batch(tokens, weights[:, 1:])


class RowStream(Protocol):
    """Where rows to train on come from."""

    tokens_per_epoch: int

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The rows of one epoch."""


def encode_all(tokenizer: Tokenizer, texts: list[str] | tuple[str, ...]) -> list[Tokens]:
    """Token ids of every text, without special tokens of the tokenizer's own."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(e.ids, np.uint16) for e in encodings]

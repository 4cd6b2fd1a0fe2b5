"""Trains a small Llama from text: packed next-token loss, resumable, bounded by epochs or by minutes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.export.training.corpus import END_OF_TEXT, Corpus, begins, goes_in_circles
from paceline.export.training.instructions import Pair, noun_lexicon, pair_for, places_of
from paceline.export.training.retelling import retell
from paceline.export.training.start import Weights
from paceline.export.training.vocabulary import ASSISTANT, CHAT_TEMPLATE, END, SPECIALS, USER, id_of

Tokens = npt.NDArray[np.uint16]
Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
TELLING = {"repetition_penalty": 1.2}
"""How stories are told by default: without it so small a model often goes round in circles."""
_PARTS = 4
"""Muon's matrices are shared out, so that threads can take a part each."""
_WINDOW = 3000
"""Stories that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama."""

    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 704
    vocab: int = 4096
    context: int = 512

    def build(self) -> LlamaForCausalLM:
        """A freshly initialised model with tied embeddings."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocab,
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.hidden // self.heads,
                intermediate_size=self.ffn,
                max_position_embeddings=self.context,
                tie_word_embeddings=True,
                rms_norm_eps=1e-5,
                bos_token_id=0,
                eos_token_id=[0, 3],
                pad_token_id=0,
            )
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train. `minutes` bounds this run's clock; the rate decays to 0 by its end."""

    epochs: float = 1.5
    minutes: float = math.inf
    batch: int = 12
    rate: float = 2e-3
    """Of the matrices inside the blocks; everything else has three quarters of it."""
    weight_decay: float = 0.05
    chat_share: float = 0.9
    seed: int = 0
    checkpoint_minutes: float = 10.0
    emphasis: float = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress bar shows."""

    done: float
    step: int
    loss: float
    held_out: float | None
    tokens_per_second: float


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
            told = self._answer(pair_for(retell(story, rng), self._nouns, rng))
            goes_on = documents and rng.random() < 0.125
            if goes_on and len(documents[-1].ids) + len(told.ids) <= self._context:
                documents[-1] = _joined(documents[-1], told)
            else:
                documents.append(_joined(start, told))
        return documents

    def _answer(self, pair: Pair) -> Document:
        """Request and story; words that the request names count `emphasis` times."""
        asked = self._tokenizer.encode(f"{USER}{pair.request}{END}{ASSISTANT}", add_special_tokens=False).ids
        told = self._tokenizer.encode(pair.story, add_special_tokens=False)
        weights = np.ones(len(told.ids), np.float32)
        begins = np.array([b for b, _ in told.offsets])
        for first, last in places_of(pair.asked, pair.story):
            weights[np.searchsorted(begins, first - 1) : np.searchsorted(begins, last)] = self._recipe.emphasis
        ids = np.array([*asked, *told.ids, self._specials[END]], np.uint16)
        return Document(ids, np.concatenate((np.zeros(len(asked), np.float32), weights, np.ones(1, np.float32))))


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


def bits_per_byte(model: Any, tokenizer: Tokenizer, stories: tuple[str, ...], context: int) -> float:
    """Mean negative log2-likelihood per UTF-8 byte of raw stories, each in a context of its own."""
    start = id_of(tokenizer, END_OF_TEXT)
    nats, size = 0.0, 0
    for story, ids in zip(stories, encode_all(tokenizer, stories), strict=True):
        row = torch.tensor([start, *ids.tolist(), start][: context + 1])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(row[None, :-1]).logits[0]
        nats += float(F.cross_entropy(logits.float(), row[1:], reduction="sum"))
        size += (
            len(story.encode()) if len(ids) + 2 <= context else len(tokenizer.decode(row.tolist()).encode())
        )
    return nats / math.log(2) / size


class _Optimizer:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms; one rate scale for all."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        named = list(model.named_parameters())
        inner = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        outer = [p for n, p in named if p.ndim != 2 or "embed" in n]
        muon = [
            torch.optim.Muon(
                inner[i::_PARTS],
                lr=recipe.rate,
                weight_decay=recipe.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
            for i in range(min(_PARTS, len(inner)))
        ]
        adam = torch.optim.AdamW(outer, lr=0.75 * recipe.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.parts: tuple[torch.optim.Optimizer, ...] = (*muon, adam)
        self._base = [p.param_groups[0]["lr"] for p in self.parts]

    def step(self, scale: float, pool: ThreadPoolExecutor) -> None:
        for part, base in zip(self.parts, self._base, strict=True):
            part.param_groups[0]["lr"] = base * scale
        list(pool.map(lambda part: part.step(), self.parts))


def _rate(done: float, step: int) -> float:
    """Warm-up over 60 steps, flat to half way, then a line down to 0."""
    return min(1.0, (step + 1) / 60) * min(1.0, (1.0 - done) / 0.5)


class _Run:
    """A model in training, with what a checkpoint keeps of it."""

    def __init__(self, shape: Shape, recipe: Recipe, folder: Path, begin: Weights | None) -> None:
        torch.manual_seed(recipe.seed)
        self.model, self.step = shape.build(), 0
        if begin is not None:
            self.model.load_state_dict(begin, strict=False)  # the head is tied to the embeddings
        self._shape, self._recipe = shape, recipe
        self.model.set_attn_implementation("eager")  # on a CPU faster than its fused one at these lengths
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        self._optimizer = _Optimizer(self.model, recipe)
        self._file = folder / "checkpoint.pt"
        spent = self._resume() if self._file.is_file() else 0.0
        self._begun = time.monotonic() - spent

    def _resume(self) -> float:
        state = torch.load(self._file, weights_only=True)
        if state["shape"] != _as_dict(self._shape):
            raise ValueError(f"{self._file} is of another shape: train into another folder, or delete it")
        self.model.load_state_dict(state["model"])
        for part, saved in zip(self._optimizer.parts, state["optimizer"], strict=True):
            part.load_state_dict(saved)
        self.step = state["step"]
        return float(state["spent"])

    def save(self, tokenizer: Tokenizer) -> None:
        """Write the model folder and the checkpoint, the latter whole or not at all."""
        save_model(self.model, tokenizer, self._file.parent)
        partial = self._file.with_suffix(".tmp")
        torch.save(
            {
                "shape": _as_dict(self._shape),
                "model": self.model.state_dict(),
                "optimizer": [p.state_dict() for p in self._optimizer.parts],
                "step": self.step,
                "spent": time.monotonic() - self._begun,
            },
            partial,
        )
        partial.replace(self._file)

    def done(self, total: int) -> float:
        """Share of the steps or of the minutes that is over, whichever is more."""
        return max(self.step / total, (time.monotonic() - self._begun) / 60 / self._recipe.minutes)

    def learn(self, batch: Batch, done: float, loss_of: Loss) -> float:
        """One step; returns its loss. Every thread takes a share of the rows, so that none waits within a layer."""
        total = float(batch.weights.sum())
        parameters = list(self.model.parameters())

        def part(rows: slice) -> tuple[float, tuple[torch.Tensor, ...]]:
            tokens, weights = (torch.from_numpy(a[rows]) for a in batch)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(self.model, tokens, weights) / total
            return loss.item(), torch.autograd.grad(loss, parameters)

        shares = [slice(i, None, self._threads) for i in range(min(self._threads, len(batch.tokens)))]
        parts = list(self._pool.map(part, shares))
        for parameter, *gradients in zip(parameters, *(g for _, g in parts), strict=True):
            parameter.grad = gradients[0]
            for gradient in gradients[1:]:
                parameter.grad += gradient
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimizer.step(_rate(done, self.step), self._pool)
        self.step += 1
        return sum(loss for loss, _ in parts)


def train(
    stream: RowStream,
    held_out: tuple[str, ...],
    tokenizer: Tokenizer,
    shape: Shape,
    recipe: Recipe,
    folder: Path,
    report: Callable[[Progress], None],
    loss_of: Loss | None = None,
    begin: Weights | None = None,
) -> LlamaForCausalLM:
    """Train into `folder` (a Hugging Face model folder plus `checkpoint.pt`), going on from a checkpoint there.

    `loss_of(model, rows[B, T + 1], weights[B, T])`, a sum, replaces the next-token loss (distillation does).
    `begin` holds the weights to start from where there is no checkpoint; else they are random.
    """
    run = _Run(shape, recipe, folder, begin)
    per_step = recipe.batch * shape.context
    total = max(1, int(recipe.epochs * stream.tokens_per_epoch / per_step))
    losses: list[float] = []
    begun = saved_at = time.monotonic()
    first, held = run.step, None
    run.model.train()
    for rows in _from_step(stream, first):
        done = run.done(total)
        if done >= 1.0:
            break
        losses.append(run.learn(rows, done, loss_of or next_token_loss))
        if run.step % 20 == 0:
            if time.monotonic() - saved_at > recipe.checkpoint_minutes * 60:
                held = _held_out(run.model, tokenizer, held_out, shape.context)
                run.save(tokenizer)
                saved_at = time.monotonic()
            rate = (run.step - first) * per_step / (time.monotonic() - begun)
            report(Progress(done, run.step, float(np.mean(losses)), held, rate))
            losses, held = [], None
    run.save(tokenizer)
    held = _held_out(run.model, tokenizer, held_out, shape.context)
    report(Progress(1.0, run.step, float(np.mean(losses or [0.0])), held, 0.0))
    return run.model


def next_token_loss(model: Any, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the cross-entropy of `rows[B, T + 1]` with `weights[B, T]`."""
    logits = model(rows[:, :-1]).logits
    each = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (each * weights.flatten()).sum()


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder: fp16 weights, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.float16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for name, value in TELLING.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": END_OF_TEXT,
                "eos_token": END,
                "model_max_length": model.config.max_position_embeddings,
                "chat_template": CHAT_TEMPLATE,
            },
            indent=2,
        )
    )


def _held_out(model: Any, tokenizer: Tokenizer, stories: tuple[str, ...], context: int) -> float:
    model.eval()
    value = bits_per_byte(model, tokenizer, stories[:120], context)
    model.train()
    return value


def _from_step(stream: RowStream, first: int) -> Iterator[Tokens]:
    """The endless row stream, skipping the rows that were trained on before a restart."""
    epoch, seen = 0, 0
    while True:
        for rows in stream.batches(epoch):
            if seen >= first:
                yield rows
            seen += 1
        epoch += 1


def _as_dict(shape: Shape) -> dict[str, int]:
    return {name: getattr(shape, name) for name in shape.__slots__}

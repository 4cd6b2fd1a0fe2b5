"""Trains a small Llama from text: packed next-token loss, resumable, bounded by epochs or by minutes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.export.training.corpus import END_OF_TEXT, Corpus
from paceline.export.training.instructions import noun_lexicon, request_for, request_words
from paceline.export.training.vocabulary import ASSISTANT, CHAT_TEMPLATE, END, USER, id_of

Tokens = npt.NDArray[np.uint16]
Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
TELLING = {"repetition_penalty": 1.2}
"""How stories are told by default: without it so small a model often goes round in circles."""
EMPHASIS = 1 << 15
"""Set on a token of a story that its request names: its loss counts `Recipe.emphasis` times."""


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
    matrix_rate: float = 2e-3
    other_rate: float = 1.5e-3
    weight_decay: float = 0.05
    chat_share: float = 0.6
    seed: int = 0
    checkpoint_minutes: float = 10.0
    emphasis: float = 5.0
    short_until: float = 0.6
    """Rows are cut in two up to this share of the run: attention is a third of the cost at full length."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress bar shows."""

    done: float
    step: int
    loss: float
    held_out: float | None
    tokens_per_second: float


class StoryStream:
    """Stories as token ids, packed without padding: some as they are, some as an answer to a request."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, context: int) -> None:
        self._tokenizer, self._recipe, self._context = tokenizer, recipe, context
        self._stories = corpus.train
        self._ids = encode_all(tokenizer, corpus.train)
        self._nouns = noun_lexicon(corpus.train)
        self.tokens_per_epoch = sum(len(i) for i in self._ids) * 21 // 20

    def batches(self, epoch: int) -> Iterator[Tokens]:
        """Shuffled rows `[batch, context + 1]` of one epoch, a function of (seed, epoch) alone."""
        rng = np.random.default_rng([self._recipe.seed, epoch])
        order = rng.permutation(len(self._stories))
        as_chat = rng.random(len(order)) < self._recipe.chat_share
        everyday = np.unique(encode_all(self._tokenizer, [request_words()])[0])
        asked = [
            f"{USER}{request_for(self._stories[i], self._nouns, rng)}{END}{ASSISTANT}" if chat else ""
            for i, chat in zip(order, as_chat, strict=True)
        ]
        requests = encode_all(self._tokenizer, asked)
        end = np.array([id_of(self._tokenizer, END)], np.uint16)
        start = np.array([id_of(self._tokenizer, END_OF_TEXT)], np.uint16)
        parts: list[Tokens] = []
        for i, request, chat in zip(order, requests, as_chat, strict=True):
            if not chat:
                parts += [start, self._ids[i]]
                continue
            asked_for = np.isin(self._ids[i], request) & ~np.isin(self._ids[i], everyday)
            parts += [start, request, self._ids[i] | (asked_for * EMPHASIS).astype(np.uint16), end]
        flat = np.concatenate(parts)
        yield from packed_rows(flat, self._recipe.batch, self._context)


class RowStream(Protocol):
    """Where rows to train on come from."""

    tokens_per_epoch: int

    def batches(self, epoch: int) -> Iterator[Tokens]:
        """Rows `[batch, context + 1]` of one epoch."""


def packed_rows(flat: Tokens, rows: int, width: int) -> Iterator[Tokens]:
    """Cut one long sequence into batches `[rows, width + 1]`; neighbours share one token."""
    for at in range(0, len(flat) - rows * width, rows * width):
        block = flat[at : at + width * rows + 1]
        yield np.lib.stride_tricks.sliding_window_view(block, width + 1)[::width]


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
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms; one rate scale for both."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        named = list(model.named_parameters())
        inner = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        outer = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                inner,
                lr=recipe.matrix_rate,
                weight_decay=recipe.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(outer, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )
        self._base = [p.param_groups[0]["lr"] for p in self.parts]

    def step(self, scale: float) -> None:
        for part, base in zip(self.parts, self._base, strict=True):
            part.param_groups[0]["lr"] = base * scale
            part.step()
            part.zero_grad(set_to_none=True)


def _rate(done: float, step: int) -> float:
    """Warm-up over 60 steps, flat to half way, then a line down to 0."""
    return min(1.0, (step + 1) / 60) * min(1.0, (1.0 - done) / 0.5)


class _Run:
    """A model in training, with what a checkpoint keeps of it."""

    def __init__(self, shape: Shape, recipe: Recipe, folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.model, self.step = shape.build(), 0
        self._shape, self._recipe = shape, recipe
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

    def learn(self, rows: Tokens, done: float, loss_of: Loss) -> float:
        """One step; returns its loss."""
        data = torch.from_numpy(rows.astype(np.int64))
        if done < self._recipe.short_until:
            half = self._shape.context // 2
            data = torch.cat((data[:, : half + 1], data[:, half:]))
        with torch.autocast("cpu", torch.bfloat16):
            weights = 1.0 + (self._recipe.emphasis - 1.0) * (data[:, 1:] >= EMPHASIS)
            loss = loss_of(self.model, data % EMPHASIS, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step(_rate(done, self.step))
        self.step += 1
        return loss.item()


def train(
    stream: RowStream,
    held_out: tuple[str, ...],
    tokenizer: Tokenizer,
    shape: Shape,
    recipe: Recipe,
    folder: Path,
    report: Callable[[Progress], None],
    loss_of: Loss | None = None,
) -> LlamaForCausalLM:
    """Train into `folder` (a Hugging Face model folder plus `checkpoint.pt`), going on from a checkpoint there.

    `loss_of(model, rows[B, context + 1], weights[B, context])` replaces the next-token loss (distillation does).
    """
    run = _Run(shape, recipe, folder)
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
    """Weighted mean cross-entropy of `rows[B, T + 1]` with `weights[B, T]`."""
    logits = model(rows[:, :-1]).logits
    each = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()


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

"""Trains a small Llama from text: packed next-token loss, resumable, bounded by epochs or by minutes."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.export.training.corpus import END_OF_TEXT
from paceline.export.training.rows import Batch, RowStream, encode_all
from paceline.export.training.start import Weights
from paceline.export.training.vocabulary import CHAT_TEMPLATE, END, id_of
from paceline.runtime.bundle.whole_file import claims, whole_file

Loss = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
TELLING = {"frequency_penalty": 0.4}
"""How stories are told by default: without it so small a model often goes round in circles."""
_PARTS = 4
"""Muon's matrices are shared out, so that threads can take a part each."""


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

    def build(self, ends: Sequence[int] = (0, 3)) -> LlamaForCausalLM:
        """A freshly initialised model with tied embeddings, whose answers end with one of `ends`."""
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
                eos_token_id=list(ends),
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
    emphasis: float = 20.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress bar shows."""

    done: float
    step: int
    loss: float
    held_out: float | None
    tokens_per_second: float
    ended: str | None = None
    """At the end, what ended it: `epochs` or `minutes`."""


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
        adam = torch.optim.AdamW(
            outer, lr=0.75 * recipe.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
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
            _fill(self.model, begin)
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
        """Write the model folder and the checkpoint, every file whole or not at all."""
        save_model(self.model, tokenizer, self._file.parent)
        state = {
            "shape": _as_dict(self._shape),
            "model": self.model.state_dict(),
            "optimizer": [p.state_dict() for p in self._optimizer.parts],
            "step": self.step,
            "spent": time.monotonic() - self._begun,
        }
        with whole_file(self._file, private=False) as file:
            torch.save(state, file)

    def done(self, total: int) -> float:
        """Share of the steps or of the minutes that is over, whichever is more."""
        limit = 60 * self._recipe.minutes
        shares = (self.step, total), (time.monotonic() - self._begun, limit)
        return max(part / whole if whole else 1.0 for part, whole in shares)

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


@claims("folder")
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
    total = math.ceil(recipe.epochs * stream.tokens_per_epoch / per_step)
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
    ended = "epochs" if run.step >= total else "minutes"
    report(Progress(1.0, run.step, float(np.mean(losses or [0.0])), held, 0.0, ended))
    return run.model


def next_token_loss(model: Any, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the cross-entropy of `rows[B, T + 1]` with `weights[B, T]`."""
    logits = model(rows[:, :-1]).logits
    each = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (each * weights.flatten()).sum()


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder: fp16 weights, tokenizer, chat template. No file is ever there by half."""
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(told, indent=2),
    }
    write_folder(model, folder, texts, TELLING)


def write_folder(
    model: LlamaForCausalLM, folder: Path, texts: Mapping[str, str], telling: Mapping[str, float]
) -> None:
    """Write a Hugging Face folder of fp16 weights, with these texts as files. No file is ever there by half.

    telling: what its generation_config.json says besides.
    """
    state = {k: v.to(torch.float16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    with tempfile.TemporaryDirectory() as made:
        stage = Path(made)
        model.save_pretrained(stage, state_dict=state)
        for name, more in (("config.json", {"dtype": "float16"}), ("generation_config.json", dict(telling))):
            settings = json.loads((stage / name).read_text()) | more
            (stage / name).write_text(json.dumps(settings, indent=2))
        for name, text in texts.items():
            (stage / name).write_text(text, encoding="utf-8")
        for path in sorted(stage.iterdir()):
            with path.open("rb") as done, whole_file(folder / path.name, private=False) as file:
                shutil.copyfileobj(done, file)


def _fill(model: LlamaForCausalLM, weights: Weights) -> None:
    """Load weights without a head: it is tied to the embeddings. Raises ValueError if they are of another shape."""
    own = {name: value.shape for name, value in model.state_dict().items() if name != "lm_head.weight"}
    given = {name: value.shape for name, value in weights.items() if name != "lm_head.weight"}
    if own != given:
        name = next(n for n in sorted(own.keys() | given.keys()) if own.get(n) != given.get(n))
        sizes = (list(shapes[name]) if name in shapes else "none" for shapes in (given, own))
        raise ValueError(
            "the weights to go on from are of another shape: {} is {}, not {}".format(name, *sizes)
        )
    model.load_state_dict(weights, strict=False)


def _held_out(model: Any, tokenizer: Tokenizer, stories: tuple[str, ...], context: int) -> float:
    model.eval()
    value = bits_per_byte(model, tokenizer, stories[:120], context)
    model.train()
    return value


def _from_step(stream: RowStream, first: int) -> Iterator[Batch]:
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

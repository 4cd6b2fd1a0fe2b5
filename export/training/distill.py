"""Trains a draft model on what its target writes, towards its probabilities (DistillSpec, 2310.08461)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from paceline.export.training.continuing import continued
from paceline.export.training.corpus import END_OF_TEXT, Corpus
from paceline.export.training.instructions import noun_lexicon, pair_for
from paceline.export.training.lm import TELLING, Loss, Recipe
from paceline.export.training.rows import Batch, Document, Tokens, batches_by_length, encode_all
from paceline.export.training.vocabulary import ASSISTANT, END, USER, id_of
from paceline.runtime.bundle.whole_file import whole_file

_TEMPERATURES = (0.0, 0.0, 0.7, 1.0)
"""Half is written as stories are told by default."""
_KEPT = "own_output.npz"


def load_target(folder: Path) -> tuple[Any, Tokenizer]:
    """A trained model folder: the model in float32 and its tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no tokenizer.json (make one with 'paceline train lm')"
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.train(False), Tokenizer.from_file(str(folder / "tokenizer.json"))


def own_output(
    target: Any,
    tokenizer: Tokenizer,
    corpus: Corpus,
    tokens: int,
    seed: int,
    report: Callable[[float], None],
    folder: Path | None = None,
    batch: int = 128,
) -> list[Tokens]:
    """Sequences that the target writes, prompts included: answers to requests and continued openings.

    They are kept in `folder`, so that a run that goes on learns from the same ones.
    """
    if folder is not None and (folder / _KEPT).is_file():
        with np.load(folder / _KEPT, allow_pickle=False) as found:
            return list(np.split(found["tokens"], found["ends"][:-1]))
    rng = np.random.default_rng([seed, 7])
    nouns = noun_lexicon(corpus.train)
    written: list[Tokens] = []
    size = 0
    torch.manual_seed(seed)
    for turn in range(10**6):
        if size >= tokens:
            break
        prompts = _prompts(tokenizer, corpus, nouns, rng, batch)
        sequences = _continue(target, tokenizer, prompts, _TEMPERATURES[turn % len(_TEMPERATURES)])
        written += sequences
        size += sum(len(s) for s in sequences)
        report(min(1.0, size / tokens))
    if folder is not None:
        _keep(written, folder)
    return written


def _keep(written: Sequence[Tokens], folder: Path) -> None:
    with whole_file(folder / _KEPT, private=False) as file:
        np.savez(file, tokens=np.concatenate(written), ends=np.cumsum([len(s) for s in written]))


def _prompts(
    tokenizer: Tokenizer, corpus: Corpus, nouns: Mapping[str, float], rng: np.random.Generator, count: int
) -> list[Tokens]:
    stories = [corpus.train[i] for i in rng.integers(len(corpus.train), size=count)]
    texts = [
        f"{USER}{pair_for(s, nouns, rng).request}{END}{ASSISTANT}"
        if rng.random() < 0.7
        else " ".join(s.split()[:4])
        for s in stories
    ]
    start = np.array([id_of(tokenizer, END_OF_TEXT)], np.uint16)
    return [np.concatenate((start, ids)) for ids in encode_all(tokenizer, texts)]


def _continue(
    target: Any, tokenizer: Tokenizer, prompts: Sequence[Tokens], temperature: float
) -> list[Tokens]:
    """Let the target finish every prompt; the sequences keep their end marker."""
    ends = [id_of(tokenizer, END_OF_TEXT), id_of(tokenizer, END)]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0}
    if not temperature:
        width = max(len(prompt) for prompt in prompts)
        sampling = {"do_sample": False, "logits_processor": LogitsProcessorList([_Penalty(width)])}
    return continued(target, prompts, ends, 320, **sampling)


class _Penalty(LogitsProcessor):
    """The frequency penalty of `TELLING`, on what stands after the first `prompt` tokens."""

    def __init__(self, prompt: int) -> None:
        self._prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        output = input_ids[:, self._prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        return scores - TELLING["frequency_penalty"] * counts


class OwnOutputStream:
    """The target's own sequences, each in a row of its own, in another order each epoch."""

    def __init__(self, sequences: Sequence[Tokens], recipe: Recipe, context: int) -> None:
        self._documents = [Document(s, np.ones(len(s), np.float32)) for s in sequences]
        self._recipe, self._context = recipe, context
        self.tokens_per_epoch = sum(len(s) for s in sequences)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The rows of one epoch, a function of (seed, epoch) alone."""
        rng = np.random.default_rng([self._recipe.seed, epoch, 3])
        yield from batches_by_length(self._documents, self._recipe.batch * self._context, self._context, rng)


def distillation_loss(target: Any) -> Loss:
    """Forward KL from the target's law to the drafter's, weighted sum over positions, both at temperature 1."""

    def loss(model: Any, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher = F.log_softmax(target(rows[:, :-1]).logits.float(), -1).flatten(0, 1)
        student = F.log_softmax(model(rows[:, :-1]).logits.float(), -1).flatten(0, 1)
        each = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
        return (each * weights.flatten()).sum()

    return loss


def agreement(target: Any, model: Any, sequences: Sequence[Tokens]) -> float:
    """Mean over positions of sum(min(p, q)): the chance that a sampled draft token is accepted."""
    total, count = 0.0, 0
    for sequence in sequences:
        rows = torch.from_numpy(sequence.astype(np.int64))[None, :512]
        with torch.no_grad():
            p, q = (torch.softmax(m(rows).logits[0].float(), -1) for m in (target, model))
        total += float(torch.minimum(p, q).sum())
        count += rows.shape[1]
    return total / count

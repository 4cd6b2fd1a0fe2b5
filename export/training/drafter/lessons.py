"""What a drafter learns of a batch, and what it is worth: the target's law at every place of an answer, and its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from paceline.export.training import loop
from paceline.export.training.continuing import continued
from paceline.export.training.drafter.folder import save_drafter
from paceline.export.training.drafter.streams import DECAY, begun, rows_of, said_at
from paceline.export.training.drafter.teacher import Law, Spoken, Teacher, untapped
from paceline.export.training.heads.losses import LOSSES
from paceline.export.training.heads.measure import GREEDY, Measured, Tally
from paceline.export.training.through_head import ROWS, through_head
from paceline.runtime.bundle.bundle import Bundle

DEEPEST = 8
"""Levels that it is measured on."""
WRITTEN = 48
"""Tokens that a drafter writes of its own, at most, for the target to judge."""
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recipe(loop.Recipe):
    """The same of a drafter."""

    own: float = 0.0
    """Share of the answers that the drafter goes on with itself, from a random place on (DistillSpec, on-policy)."""


class Batch(NamedTuple):
    """Texts, the places of each that are learnt (the next token is guessed there), and a seed for what is drawn."""

    spoken: list[Spoken]
    places: list[Places]
    lengths: npt.NDArray[np.int64]
    own: list[bool]
    """Which of them the drafter goes on with."""
    seed: int


def places_of(spoken: Spoken) -> Places:
    """Those behind which a token of the answer stands."""
    return np.arange(spoken.prompt - 1, len(spoken.tokens) - 1)


def make_batch(
    spoken: Sequence[Spoken], longest: int, rng: np.random.Generator, prompts: float, own: float
) -> Batch:
    """prompts: share of the places in prompts that are learnt too; own: of the texts, see `Recipe`."""
    cut = [Spoken(s.tokens[:longest], s.prompt, s.taps[:longest]) for s in spoken]
    places = [np.concatenate([np.flatnonzero(rng.random(s.prompt - 1) < prompts), places_of(s)]) for s in cut]
    chosen = (rng.random(len(cut)) < own).tolist()
    lengths = np.array([len(s.tokens) for s in cut])
    return Batch(cut, places, lengths, chosen, int(rng.integers(2**31)))


class Pupil:
    """A drafter as the loop sees it.

    kept: held-out answers.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        bundle: Bundle,
        teacher: Teacher,
        kept: Sequence[Spoken],
        recipe: Recipe,
    ) -> None:
        model.set_attn_implementation("eager")  # on a CPU faster than its fused one at these lengths
        self.module: Any = model.to(recipe.device)  # type: ignore[arg-type]
        self._bundle, self._teacher, self._kept = bundle, teacher, kept
        self._loss, self._taught = LOSSES[recipe.loss], recipe.loss != "ce"
        self._device = torch.device(recipe.device)
        self._autocast = self._device.type != "cpu" or loop.fast_bfloat16()
        self._greedy: list[bool] | None = None
        self._vocab = bundle.manifest.target.vocab
        self._streams = self.module.config.vocab_size - self._vocab

    def learn(self, batch: Batch) -> float:
        """See `loop.Learner`."""
        spoken, places = self._with_own(batch)
        begins = self._begun(batch, spoken)
        count = sum(map(len, places)), sum(map(len, begins))
        total, states, gradients = 0.0, list[Tensor](), list[Tensor]()
        with torch.autocast(self._device.type, torch.bfloat16, self._autocast, cache_enabled=False):
            for text, at, begin, found in zip(
                spoken, places, begins, self._states(spoken, places, begins), strict=True
            ):
                learnt = np.concatenate([at, said_at(begin, self._streams)])
                loss, gradient = self._one(text, learnt, found, self._weights(len(at), len(begin), count))
                total += loss
                states.append(found)
                gradients.append(gradient)
        torch.autograd.backward(states, gradients)
        return total

    def _begun(self, batch: Batch, spoken: Sequence[Spoken]) -> list[Places]:
        """Where streams begin in each text."""
        rng = np.random.default_rng([batch.seed, 1])
        return [begun(len(text.tokens), text.prompt, self._streams, rng) for text in spoken]

    def _weights(self, places: int, begins: int, count: tuple[int, int]) -> Tensor:
        """What each row of a text counts: those of places, then those of streams. count: of both in all texts."""
        levels = torch.tensor([DECAY ** (level + 1) for level in range(self._streams)])
        rows = torch.full((places,), 1 / count[0]), levels.repeat(begins) / max(count[1], 1)
        return torch.cat(rows).to(self._device)

    def _one(self, text: Spoken, places: Places, states: Tensor, weights: Tensor) -> tuple[float, Tensor]:
        law = self._teacher.law(text, places) if self._taught else None
        tokens = torch.from_numpy(text.tokens[places + 1].astype(np.int64)).to(self._device)

        def loss_of(_: Tensor, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            p = logits.detach() if law is None else law(part).to(self._device)
            loss = (self._loss(logits, p, tokens[part]) * weights[part]).sum()
            return loss, loss

        return through_head(states, self._table, loss_of)

    @property
    def _table(self) -> Tensor:
        """Of the target's tokens."""
        table: Tensor = self.module.get_input_embeddings().weight
        return table[: self._vocab]

    def _states(
        self, spoken: Sequence[Spoken], places: Sequence[Places], begins: Sequence[Places]
    ) -> list[Tensor]:
        """Of each text float[n, H], behind the final norm: at its places, then of the streams that begin in it."""
        width = max(len(text.tokens) for text in spoken)
        run = rows_of([text.tokens for text in spoken], begins, self._streams, self._vocab)
        given = {"input_ids": run.tokens, "position_ids": run.positions, "attention_mask": run.mask}
        on_device = {name: value.to(self._device) for name, value in given.items()}
        states = self.module.model(**on_device, use_cache=False).last_hidden_state
        found = []
        for row, (at, begin) in enumerate(zip(places, begins, strict=True)):
            wanted = np.concatenate([at, width + np.arange(self._streams * len(begin))])
            found.append(states[row][torch.from_numpy(wanted).to(self._device)])
        return found

    def _with_own(self, batch: Batch) -> tuple[list[Spoken], list[Places]]:
        """The batch, with what the drafter writes itself in place of the ends of the chosen texts."""
        spoken, places = list(batch.spoken), list(batch.places)
        chosen = [row for row, own in enumerate(batch.own) if own]
        if not chosen:
            return spoken, places
        rng = np.random.default_rng(batch.seed)
        cuts = [int(rng.integers(spoken[row].prompt, len(spoken[row].tokens))) for row in chosen]
        cut_off = [spoken[row].tokens[:cut] for row, cut in zip(chosen, cuts, strict=True)]
        torch.manual_seed(batch.seed)
        self.module.eval()
        ends = sorted(self._bundle.generation.eos_ids) or [0]
        written = continued(
            self.module,
            cut_off,
            ends,
            WRITTEN,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            suppress_tokens=list(range(self._vocab, self._vocab + self._streams)) or None,
        )
        self.module.train()
        for row, cut, tokens in zip(chosen, cuts, written, strict=True):
            spoken[row] = untapped(tokens[: self._teacher.longest], cut)
            places[row] = places_of(spoken[row])
        return spoken, places

    @torch.no_grad()
    def measure(self, last: bool) -> Measured:
        """See `loop.Learner`. What a level guesses where all before were right is what it guesses after the text."""
        self.module.eval()
        found = [self._judged(text) for text in self._kept]
        self.module.train()
        if self._greedy is None:
            greedy = [same > GREEDY for *_, same in found]
            self._greedy = greedy if any(greedy) else [True] * len(greedy)
        depth = self._streams + 1 if self._streams else DEEPEST
        tally = Tally(depth)
        for (right, alpha, _), was_greedy in zip(found, self._greedy, strict=True):
            there = np.arange(len(right))[:, None] + np.arange(depth) < len(right)
            if not self._streams:  # a level after right ones is what it says after the text
                levels = np.minimum(np.arange(len(right))[:, None] + np.arange(depth), len(right) - 1)
                right, alpha = right[levels, 0], alpha[levels, 0]
            tally.add(right & there, alpha, there, was_greedy)
        return tally.measured()

    def _judged(self, text: Spoken) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], float]:
        """By place and level of a pass: is its best guess right, sum min(p, q); and how often the text has the target's
        best token."""
        places, streams = places_of(text), self._streams
        begins = places if streams else places[:0]
        # Levels beyond the text say nothing; any law serves there.
        said = np.minimum(said_at(begins, streams), places[-1])
        law: Law = self._teacher.law(text, np.concatenate([places, said]))
        states = self._states([text], [places], [begins])[0].float()
        tokens = torch.from_numpy(text.tokens[np.concatenate([places, said]) + 1].astype(np.int64))
        right, alpha, best = list[Tensor](), list[Tensor](), 0
        for start in range(0, len(tokens), ROWS):
            part = slice(start, start + ROWS)
            p, q = law(part).cpu(), (states[part] @ self._table.float().T).softmax(-1).cpu()
            right.append(q.argmax(-1) == tokens[part])
            alpha.append(torch.minimum(p, q).sum(-1))
            best += int((p.argmax(-1) == tokens[part])[: max(len(places) - start, 0)].sum())
        found = torch.cat(right).numpy(), torch.cat(alpha).double().numpy()
        by_level = [
            np.hstack([one[: len(places), None], one[len(places) :].reshape(len(places), -1)])
            for one in found
        ]
        return by_level[0], by_level[1], best / len(places)

    def save(self, folder: Path, accepted: list[float] | None) -> None:
        """See `loop.Learner`."""
        save_drafter(self.module, self._bundle, folder, accepted)

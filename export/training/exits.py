"""Trains exits: what moves the states of early layers to where the target's own norm and LM head read (tuned lens,
2303.08112), so that they say early what the target will say.

They begin as the regression of the target's last states on those of the layer, of the rank that they have: else the
first thing that they learn is to undo the few large components that states of many models have.

Exits behind several layers learn side by side from one pass over the answers; which one is used is decided by what a
step of the mirror is predicted to take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn

from paceline.export.heads.config import CONFIG, WEIGHTS
from paceline.export.heads.tensors import check_ascending
from paceline.export.skips.trained import EPSILON, VOCABULARY, ExitConfig, read_exit
from paceline.export.training import loop
from paceline.export.training.heads.batches import Batch, Batches, Conversation, held_out, make_batch
from paceline.export.training.heads.choice import CHECKPOINT
from paceline.export.training.heads.losses import LOSSES
from paceline.export.training.heads.measure import Measured
from paceline.export.training.heads.target import Target
from paceline.export.training.heads.vocabulary import choose_vocabulary, coverage
from paceline.export.training.through_head import through_head
from paceline.runtime.bundle.whole_file import write_atomically

RANKS = 8
"""Likeliest tokens of which the recall is told."""
BRANCHES = 4
"""Of these so many are drafted on, about."""
_HELD_OUT_ONE_IN = 20
_FIRST, _RIDGE, _FLAT = 8000, 0.01, 1e-3
"""Rows of the regression, what is added to its squares, and the least weight of the norm that can be undone: shares of
the mean."""
_MEASURED = 2000
"""Rows of held-out answers that exits are measured on."""


@dataclass(frozen=True, slots=True)
class Costs:
    """In passes of the target: by layer what all up to it takes, its whole LM head, and the drafting of a round. known:
    of the rows of the LM head those that an exit has."""

    layers: Mapping[int, float]
    head: float
    draft: float
    known: float = 1.0

    def step(self, layer: int, recall: float) -> float:
        """What a round is predicted to take: the first layers and the exit, then the rest or the drafting, whichever
        takes longer, and once more the drafting where what the target said was not foreseen."""
        first = self.layers[layer]
        return first + self.known * self.head + max(1 - first, self.draft) + (1 - recall) * self.draft


class Exits(nn.Module):
    """`x + x @ down @ up + bias` of a state x of size 1, by layer; it is the state itself before `start`."""

    def __init__(self, hidden: int, rank: int, layers: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.layers, self.rank, self.hidden = list(layers), rank, hidden
        chance = torch.Generator().manual_seed(seed)
        self.down, self.up, self.bias = (nn.ParameterDict() for _ in range(3))
        for layer in layers:
            self.down[str(layer)] = nn.Parameter(torch.randn(hidden, rank, generator=chance) / hidden**0.5)
            self.up[str(layer)] = nn.Parameter(torch.zeros(rank, hidden))
            self.bias[str(layer)] = nn.Parameter(torch.zeros(hidden))

    def forward(self, layer: int, states: Tensor) -> Tensor:
        """Where the final norm of the target reads, [N, hidden]."""
        name, x = str(layer), sized(states)
        moved: Tensor = x + x @ self.down[name] @ self.up[name] + self.bias[name]
        return moved

    @torch.no_grad()
    def start(self, layer: int, states: Tensor, meant: Tensor) -> None:
        """Begin as the regression of what is meant on these states, [N, hidden], by so many components of what it
        explains."""
        x, name = sized(states), str(layer)
        y = meant - x
        x_mean, y_mean = x.mean(0), y.mean(0)
        centred = (x - x_mean).double()
        squares = centred.T @ centred
        ridge = _RIDGE * squares.diagonal().mean() * torch.eye(self.hidden, dtype=torch.float64)
        whole = torch.linalg.solve(squares + ridge, centred.T @ (y - y_mean).double())
        _, best = torch.linalg.eigh(whole.T @ squares @ whole)  # ascending
        kept = best[:, -self.rank :]
        self.down[name].copy_(whole @ kept)
        self.up[name].copy_(kept.T)
        self.bias[name].copy_(y_mean - x_mean @ self.down[name] @ self.up[name])


def sized(states: Tensor) -> Tensor:
    """States of size 1: the final norm does not mind, and what is learnt does not depend on how large they were."""
    return states.float() * states.float().pow(2).mean(-1, keepdim=True).add(EPSILON).rsqrt()


def normed(states: Tensor, target: Target) -> Tensor:
    """What the final norm of the target makes of states."""
    size = states.float().pow(2).mean(-1, keepdim=True).add(target.epsilon).rsqrt()
    return states.float() * size * target.norm.to(states.device)


class Pupil:
    """Exits as the loop sees them. vocabulary: ids of the target that they know, ascending, maybe all."""

    def __init__(
        self,
        exits: Exits,
        target: Target,
        vocabulary: npt.NDArray[np.int32],
        kept: Sequence[Batch],
        recipe: loop.Recipe,
        costs: Costs,
    ) -> None:
        self.module, self._target, self._kept = exits, target, kept
        self._costs = replace(costs, known=len(vocabulary) / target.vocab)
        self._loss, self._device = LOSSES[recipe.loss], torch.device(recipe.device)
        self._head = target.head.to(self._device)
        self._ids = torch.from_numpy(vocabulary).to(self._device, torch.int64)
        self._rows_of_head = self._head if self.whole else self._head[self._ids]
        self._row_of = torch.full((target.vocab,), -1, device=self._device)
        self._row_of[self._ids] = torch.arange(len(vocabulary), device=self._device)
        self._autocast = self._device.type != "cpu" or loop.fast_bfloat16()
        self.recall: dict[int, list[float]] = {}

    @property
    def whole(self) -> bool:
        """Whether they know all tokens of the target."""
        return len(self._ids) == self._target.vocab

    @property
    def layer(self) -> int:
        """The one behind which a step is predicted to take least, by what was measured last."""
        return min(
            self.module.layers, key=lambda layer: self._costs.step(layer, self.recall[layer][BRANCHES - 1])
        )

    def steps(self) -> dict[int, float]:
        """By layer, what a step is predicted to take, in passes of the target."""
        return {layer: self._costs.step(layer, found[BRANCHES - 1]) for layer, found in self.recall.items()}

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the places that are learnt: states [N, layers, H], the target's last ones [N, H], next tokens [N]."""
        known = batch.levels > 0
        row, place = np.nonzero(known)[0], batch.anchors[known]
        features, hidden = batch.features[row, place], batch.hidden[row, place]
        given = features, hidden, batch.tokens[row, place + 1]
        states, last, tokens = (torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for a in given)
        return states.float(), last.float(), tokens

    def start(self, batches: Batches) -> None:
        """Let every exit begin as a regression on the first of these."""
        found, rows = list[tuple[Tensor, Tensor]](), 0
        for batch in batches.epoch(0):
            states, last, _ = self._rows(batch)
            found.append((states, last))
            rows += len(last)
            if rows >= _FIRST:
                break
        norm = self._target.norm.to(self._device)
        inverse = torch.where(norm.abs() > _FLAT * norm.abs().mean(), 1 / norm, torch.zeros_like(norm))
        meant = torch.cat([last for _, last in found]) * inverse
        for number, layer in enumerate(self.module.layers):
            self.module.start(layer, torch.cat([states[:, number] for states, _ in found]), meant)

    def learn(self, batch: Batch) -> float:
        """See `loop.Learner`. Places whose next token they do not know teach nothing."""
        states, last, following = self._rows(batch)
        tokens = self._row_of[following]
        known = tokens >= 0
        states, last, tokens = states[known], last[known], tokens[known]
        if not len(tokens):
            return 0.0
        total = 0.0
        with torch.autocast(self._device.type, torch.bfloat16, self._autocast, cache_enabled=False):
            law = (last @ self._rows_of_head.T).float().softmax(-1)

            def loss_of(read: Tensor, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
                told = self._loss(logits, law[part], tokens[part]).sum() / len(tokens)
                return told, told

            for number, layer in enumerate(self.module.layers):
                read = normed(self.module(layer, states[:, number]), self._target)
                loss, gradient = through_head(read, self._rows_of_head, loss_of)
                read.backward(gradient)  # type: ignore[no-untyped-call]
                total += loss / len(self.module.layers)
        return total

    @torch.no_grad()
    def measure(self, last: bool) -> Measured:
        """Of each layer the recall of the target's own choice, whether it can be named or not, and the mass that its
        law has in common with the target's. See `loop.Learner`."""
        layers, rows, outside = self.module.layers, 0, 0.0
        hits, common = np.zeros((len(layers), RANKS)), np.zeros(len(layers))
        for batch in self._kept:
            states, hidden, tokens = self._rows(batch)
            if not len(tokens) or rows >= _MEASURED:
                continue
            whole = (hidden @ self._head.T).softmax(-1)
            choice, law = whole.argmax(-1, keepdim=True), whole[:, self._ids]
            rows += len(tokens)
            outside += len(tokens) - float(law.sum())
            for number, layer in enumerate(layers):
                read = normed(self.module(layer, states[:, number]), self._target)
                own = (read @ self._rows_of_head.T).softmax(-1)
                found = self._ids[own.topk(min(RANKS, own.shape[1])).indices] == choice
                hits[number] += found.cumsum(1).sum(0).cpu().numpy()
                common[number] += float(torch.minimum(own, law).sum())
        shares = (hits / max(rows, 1)).round(4).tolist()
        self.recall = dict(zip(layers, shares, strict=True))
        return Measured(
            accepted=[found[0] for found in shares],
            alpha=(common / max(rows, 1)).round(4).tolist(),
            round_tokens=1.0,
            outside=round(outside / max(rows, 1), 4),
            ranks=shares,
        )

    def save(self, folder: Path, accepted: list[float] | None) -> None:
        """See `loop.Learner`."""
        config = ExitConfig(
            hidden=self.module.hidden,
            rank=self.module.rank,
            layers=self.module.layers,
            layer=self.layer if self.recall else self.module.layers[0],
            recall=self.recall,
            target=self._target.name,
            vocab=None if self.whole else len(self._ids),
        )
        state = {name: value.contiguous().cpu() for name, value in self.module.state_dict().items()}
        if not self.whole:
            state[VOCABULARY] = self._ids.to("cpu", torch.int32)
        write_atomically(folder / WEIGHTS, save(state), private=False)
        text = msgspec.json.format(msgspec.json.encode(config), indent=2)
        write_atomically(folder / CONFIG, text + b"\n", private=False)


@dataclass(frozen=True, slots=True)
class Course:
    """What an exit learns from: conversations whose taps are `given`, the target, the layers, and how many tokens it is
    to know, `ends` among them."""

    conversations: Sequence[Conversation]
    given: Sequence[str]
    target: Target
    layers: Sequence[int]
    rank: int
    vocab: int
    ends: Sequence[int]
    batch: int
    longest: int
    prompts: float


def train_exits(
    course: Course,
    costs: Costs,
    recipe: loop.Recipe,
    folder: Path,
    report: Callable[[loop.Progress], None] = lambda progress: None,
) -> tuple[Pupil, float]:
    """Train into `folder`, as `loop.train` does; returns what was trained, measured, and of the tokens of held-out
    answers the share that it knows."""
    learnt, kept = held_out(course.conversations, _HELD_OUT_ONE_IN)
    vocabulary = _vocabulary(course, learnt, folder)
    reads = [list(course.given).index(f"hidden.{layer}") for layer in course.layers]
    batches = Batches(learnt, course.batch, course.longest, reads, recipe.seed, course.prompts)
    exits = Exits(course.target.hidden, min(course.rank, course.target.hidden), course.layers, recipe.seed)
    measured = [make_batch([one], course.longest, reads) for one in kept]
    pupil = Pupil(exits, course.target, vocabulary, measured, recipe, costs)
    if not (folder / CHECKPOINT).is_file():
        pupil.start(batches)
    loop.train(pupil, batches, recipe, folder, report)
    return pupil, coverage(kept, vocabulary, course.target.vocab)


def _vocabulary(course: Course, learnt: Sequence[Conversation], folder: Path) -> npt.NDArray[np.int32]:
    """That of exits which are there, else the tokens that stand most often in answers."""
    vocab = course.target.vocab
    if (folder / CONFIG).is_file() and (known := read_exit(folder).vocabulary) is not None:
        check_ascending(folder / WEIGHTS, VOCABULARY, known, vocab)
        return known.astype(np.int32)
    return choose_vocabulary(learnt, course.vocab, vocab, course.ends)

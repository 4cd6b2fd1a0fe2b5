"""What the loss of a model depends on: the inputs of each projection, and the gradients of its outputs, on a text.

To second order, an error E of a matrix [K, N] costs half of the sum over columns n of s_n E_n^T M E_n, where s_n is the
mean square of the gradient of output n (a Fisher estimate: labels are drawn from the model itself) and M the second
moments of the inputs. Tokens are weighted in M by their gradients: an input of thousands at a token on whose output
little depends, as every real model has, does not drown the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paceline.export.facts import facts
from paceline.export.reference import eager
from paceline.export.source import Loaded

_TOKENS_EACH = 2
"""Tokens a text has for each input of a projection, at least, for moments of pairs to be worth more than noise."""
_MOST_BYTES = 1 << 30
"""Memory for moments of pairs; with more only those of single inputs are kept."""
_LEAST_ROWS, _MOST_ROWS, _WORK = 4, 64, 1_100_000_000
_PRIOR = 4
"""Pairs count as if this many tokens per input had shown none: the fewer tokens, the more moments are shrunk."""


@dataclass(slots=True)
class Sensitivity:
    """Of a projection, or of several that read the same inputs. tokens: how many were seen."""

    moments: Tensor
    """Second moments of the inputs, of all pairs [K, K] or of each alone [K]."""
    outputs: Tensor
    """Mean squared gradient of every output [N], one projection after the other."""
    tokens: int

    def importance(self) -> Tensor:
        """Second moments of each input alone, float32[K]."""
        return self.moments.diagonal() if self.moments.ndim == 2 else self.moments

    def inputs(self) -> Tensor:
        """The moments to round with: those of pairs are drawn towards 0, the more the fewer tokens were seen."""
        if self.moments.ndim == 1:
            return self.moments
        own, prior = self.moments.diagonal(), _PRIOR * len(self.moments)
        shrunk = self.moments * (self.tokens / (self.tokens + prior))
        shrunk.diagonal().copy_(own)
        return shrunk


def measuring_rows(parameters: int) -> int:
    """Rows of a text to measure a model on: fewer for a larger one, so that it takes about as long."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _WORK // parameters))


def measure(
    loaded: Loaded, text: Tensor, done: Callable[[float], None] | None = None
) -> dict[str, Sensitivity]:
    """The sensitivity of every projection that the text reaches, by parameter name.

    text: int64[rows, length]. Takes one forward and one backward pass a row, the memory of one row's activations, and
    the moments. A table that is also the head counts as both. `done` is told the share that is done.
    """
    with eager(loaded, facts(loaded).rope, text.shape[1]) as model, _frozen(model):
        work = _Pass(text.numel(), _pairs(model, text.numel()))
        head, table = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]
        tied = head is not None and head.weight is table.weight
        handles = [table.register_forward_hook(work.entering)]
        handles += [m.register_forward_hook(work.reached) for m in _projections(model)]
        random = torch.Generator().manual_seed(0)
        try:
            for at, row in enumerate(text):
                _backward(model, row, random)
                work.finish_row()
                if done is not None:
                    done((at + 1) / len(text))
        finally:
            for handle in handles:
                handle.remove()
        if tied:
            work.add_table(head, float(getattr(table, "embed_scale", 1.0)))
        return work.by_name(model)


def _backward(model: PreTrainedModel, row: Tensor, random: torch.Generator) -> None:
    with torch.enable_grad():
        logits = model(input_ids=row[None], use_cache=False).logits[0].float()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=random)[:, 0]
        F.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Group:
    """Projections that read one input. weighted: of the moments; counted: the sum of their weights."""

    modules: list[nn.Module]
    weighted: Tensor
    outputs: list[Tensor]
    counted: float = 0.0


@dataclass(slots=True)
class _Pass:
    """Collects moments while rows pass. tokens: of the whole text. pairs: keep those of a projection of K inputs."""

    tokens: int
    pairs: Callable[[int], bool]
    group_of: dict[int, _Group] = field(default_factory=dict)
    table: Tensor | None = None
    _row: dict[int, tuple[Tensor, list[nn.Module]]] = field(default_factory=dict)
    _gradients: dict[int, Tensor] = field(default_factory=dict)

    def entering(self, _module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        """Gradients begin at the output of the table, so that no parameter needs one."""
        leaf = out.detach().requires_grad_(True)
        leaf.register_hook(self._read_table)  # type: ignore[no-untyped-call]
        return leaf

    def _read_table(self, gradient: Tensor) -> None:
        rows = gradient.flatten(0, -2).float()
        squares = rows.square().sum(0)
        self.table = squares if self.table is None else self.table + squares

    def reached(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        """Remember the input of a projection, and read the gradient of its output when that comes."""
        if not out.requires_grad:
            return
        x = inputs[0]
        held, readers = self._row.setdefault(id(x), (x, []))
        assert held is x
        readers.append(module)
        out.register_hook(lambda gradient: self._read(module, gradient))  # type: ignore[no-untyped-call]

    def _read(self, module: nn.Module, gradient: Tensor) -> None:
        self._gradients[id(module)] = gradient.flatten(0, -2).float()

    def finish_row(self) -> None:
        """Add a row's moments; its inputs and gradients are let go."""
        for x, modules in self._row.values():
            if all(id(m) in self._gradients for m in modules):
                self._add(x.detach().flatten(0, -2).float(), modules)
        self._row.clear()
        self._gradients.clear()

    def _add(self, x: Tensor, modules: list[nn.Module]) -> None:
        gradients = [self._gradients[id(m)].square_() for m in modules]
        weights = torch.stack([g.sum(1) for g in gradients]).sum(0)
        outputs = [g.sum(0) for g in gradients]
        scaled = x * weights[:, None]
        moments = scaled.T @ x if self.pairs(x.shape[1]) else (scaled * x).sum(0)
        group = self.group_of.get(id(modules[0]))
        if group is None:
            group = _Group(modules, moments, outputs)
            self.group_of.update({id(m): group for m in modules})
        else:
            group.weighted += moments
            group.outputs = [a + b for a, b in zip(group.outputs, outputs, strict=True)]
        group.counted += float(weights.sum())

    def add_table(self, head: nn.Module, scale: float) -> None:
        """Let the head count what its weights do as the table: an error there is an error of the model's inputs."""
        group = self.group_of.get(id(head))
        if group is None or self.table is None:
            return
        # Both are sums over the tokens, to be divided by what the head counted.
        own = group.weighted.diagonal() if group.weighted.ndim == 2 else group.weighted
        own += self.table * scale**2

    def by_name(self, model: PreTrainedModel) -> dict[str, Sensitivity]:
        """What was found, by all names of each weight; projections of one input share one object."""
        found: dict[int, Sensitivity] = {}
        for group in {id(g): g for g in self.group_of.values()}.values():
            found |= dict.fromkeys((id(module.weight) for module in group.modules), self._ready(group))
        names = model.named_parameters(remove_duplicate=False)
        return {name: found[id(weight)] for name, weight in names if id(weight) in found}

    def _ready(self, group: _Group) -> Sensitivity:
        counted = group.counted if group.counted > 0 else 1.0
        outputs = torch.cat(group.outputs) / self.tokens
        return Sensitivity(group.weighted / counted, outputs, self.tokens)


def _projections(model: PreTrainedModel) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D))


def projection_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weight of each projection as [in, out], a view, by one of its names."""
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    found = {}
    for module in _projections(model):
        weight = module.weight
        assert isinstance(weight, Tensor)
        found[names[id(weight)]] = weight.detach() if isinstance(module, Conv1D) else weight.detach().T
    return found


def _pairs(model: PreTrainedModel, tokens: int) -> Callable[[int], bool]:
    """Which numbers of inputs have moments of pairs: those that the text shows enough of, if there is memory."""
    widths = [len(weight) for weight in projection_weights(model).values()]
    few = [k for k in widths if k * _TOKENS_EACH <= tokens]
    fits = 4 * sum(k * k for k in few) <= _MOST_BYTES
    return lambda k: fits and k * _TOKENS_EACH <= tokens


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter takes a gradient."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)

"""Calibrated 4-bit rounding of a whole torch model: one pass over a text, each matrix rounded when it is reached.

Every projection sees two streams of the same text: what the unchanged model computes, and what the model rounded so
far computes. Its matrix is rounded to turn the second stream's inputs into the first one's outputs, so that errors of
earlier matrices are made good by later ones (as in GPTAQ, arXiv 2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paceline.export.facts import facts
from paceline.export.reference import eager
from paceline.export.rounding import block_for, calibrated
from paceline.export.source import Loaded

_LENGTH = 256
CALIBRATION_ROWS = 64
"""Most rows of a calibration text."""
_FEW_ROWS = 32
_MANY = 100_000_000
"""Parameters from which the text is halved: it is what takes the time."""
_CORRECTION = 0.7
"""Share of the earlier error that a matrix makes good: all of it would fit the text too closely."""
_RIDGE = 0.05
_TABLE = 0.1
"""A table that is also the head keeps its own rows close by this much, beside its products."""
_BATCH = 8


def calibration_text(
    loaded: Loaded,
    ids: Sequence[int] = (),
    rows: int | None = None,
    done: Callable[[float], None] | None = None,
) -> Tensor:
    """Token ids int64[rows, length] of texts to calibrate on, from the model itself: sampled after its first token.

    ids: a text whose beginning is one more row. rows: None chooses by the size of the model. The same model gives
    the same text. `done` is told the share that is written.
    """
    known = facts(loaded)
    length = calibration_length(loaded)
    rows = rows or (CALIBRATION_ROWS if known.parameters < _MANY else _FEW_ROWS)
    with eager(loaded, known.rope, length) as model, torch.no_grad():
        sampled = _sample(model, rows, length, known.vocab, ids, done)
    return torch.cat([sampled, text_rows(ids, length)]) if len(ids) else sampled


def calibration_length(loaded: Loaded) -> int:
    """Tokens of a row of a calibration text."""
    return min(_LENGTH, facts(loaded).context)


def text_rows(ids: Sequence[int], length: int, rows: int = 1) -> Tensor:
    """Cut a text into at most `rows` rows of `length` tokens, int64[rows, length]; a short one is repeated."""
    if not ids:
        raise ValueError("the calibration text has no tokens")
    full = torch.tensor(list(ids) * -(-length // len(ids)))
    rows = min(rows, len(full) // length)
    return full[: rows * length].reshape(rows, length)


def _sample(
    model: PreTrainedModel,
    rows: int,
    length: int,
    vocab: int,
    ids: Sequence[int],
    done: Callable[[float], None] | None,
) -> Tensor:
    """Plain sampling; whatever ends a text is followed by what begins one."""
    config = model.config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [end for end in ends if end is not None]
    first = next((int(t) for t in (config.bos_token_id, *ends, *ids[:1]) if t is not None), 0)
    random = torch.Generator().manual_seed(0)
    tokens = torch.full((rows, 1), first)
    text, past = [tokens], None
    for _ in range(length - 1):
        out: Any = model(input_ids=tokens, past_key_values=past, use_cache=True)
        past = out.past_key_values
        drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=random).clamp_(max=vocab - 1)
        ended = torch.isin(tokens, torch.tensor(ends, dtype=torch.int64)) & (tokens != first)
        tokens = torch.where(ended, first, drawn)
        text.append(tokens)
        if done is not None:
            done(len(text) / length)
    return torch.cat(text, dim=1)


def calibrate(
    loaded: Loaded,
    text: Tensor,
    block: int,
    done: Callable[[int], None] | None = None,
    *,
    head: bool = True,
) -> dict[str, float]:
    """Round every projection of a model to 4 bits, in place; the relative error of each matrix by parameter name.

    text: int64[rows, length]. block: rows of a matrix that share a scale. What is left in the
    parameters lies on the grid exactly: `quantise(..., gridded=True)` finds its codes and scales again. A head
    that is the embedding table is rounded first, so that everything behind the table makes good for it; without
    `head` it stays as it is. Takes the memory of the model, of one layer's activations of the text twice, and of a
    few matrices [K, K]. `done` is told how many weights are finished.
    """
    known = facts(loaded)
    with eager(loaded, known.rope, text.shape[1]) as model, torch.no_grad(), ExitStack() as stack:
        output: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        table: nn.Module = model.get_input_embeddings()
        work = _Rounding(len(text), block, done, {id(p): name for name, p in model.named_parameters()})
        if not head:
            work.skip(output)
        elif output.weight is table.weight:
            moments = _head_moments(model, output, text)
            stack.enter_context(_unrounded_first(table, text))
            work.table(output, moments)
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                stack.enter_context(_forward(module, work.of(module, last=module is output)))
        model(input_ids=torch.cat([text, text]), use_cache=False)
    return work.errors


@dataclass(slots=True)
class _Moments:
    """Of the inputs X of the unchanged and Y of the rounded model: Y^T Y, and the share of X - Y that Y foretells."""

    inputs: Tensor
    products: Tensor
    correction: Tensor


@dataclass(slots=True)
class _Rounding:
    """Rounds projections as they are reached. rows: how many of a batch belong to the unchanged model."""

    rows: int
    block: int
    done: Callable[[int], None] | None
    names: dict[int, str]
    errors: dict[str, float] = field(default_factory=dict)
    _finished: set[int] = field(default_factory=set)
    _weights: int = 0
    _last: _Moments | None = None

    def table(self, head: nn.Module, moments: Tensor) -> None:
        """Round the table that is also the head, whose inputs have these moments[H, H]."""
        moments.diagonal().add_(_TABLE * moments.diagonal().mean())
        matrix = _matrix(head)
        self._write(head, matrix, _rounded(matrix, moments, self.block))

    def skip(self, module: nn.Module) -> None:
        """Leave a projection as it is."""
        self._finished.add(id(module.weight))

    def of(self, module: nn.Module, last: bool) -> Callable[[Tensor], Tensor]:
        """The forward of a projection during the pass; nothing reads what the last one computes."""

        def forward(x: Tensor) -> Tensor:
            matrix, bias = _matrix(module), module.bias
            assert bias is None or isinstance(bias, Tensor)
            first = id(module.weight) not in self._finished
            if last and not first:
                return x[:, :1, :1]
            exact = x[: self.rows] if last else F.linear(x[: self.rows], matrix.T, bias)
            if first:
                moments = self._moments(x)
                target = matrix + _CORRECTION * (moments.correction @ matrix)
                self._write(module, matrix, _rounded(target, moments.products, self.block))
            return x[:, :1, :1] if last else torch.cat([exact, F.linear(x[self.rows :], matrix.T, bias)])

        return forward

    def _moments(self, x: Tensor) -> _Moments:
        """Those of one input, which several projections may read in turn."""
        if self._last is None or self._last.inputs is not x:
            meant, given = x[: self.rows].flatten(0, -2), x[self.rows :].flatten(0, -2)
            products = given.T @ given / len(given)
            across = given.T @ (meant - given) / len(given)
            ridged = products.clone()
            ridged.diagonal().add_(_RIDGE * products.diagonal().mean().clamp_min(1e-30))
            factor = torch.linalg.cholesky_ex(ridged)[0]
            self._last = _Moments(x, products, torch.cholesky_solve(across, factor))
        return self._last

    def _write(self, module: nn.Module, matrix: Tensor, rounded: Tensor | None) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self._finished.add(id(weight))
        if rounded is not None:
            error = (rounded - matrix).norm() / matrix.norm().clamp_min(1e-30)
            self.errors[self.names[id(weight)]] = float(error)
            matrix.copy_(rounded)
        self._weights += weight.numel()
        if self.done is not None:
            self.done(self._weights)


def _rounded(matrix: Tensor, products: Tensor, block: int) -> Tensor | None:
    """The rounded matrix; None where only float32 scales fit, which plain rounding handles later."""
    try:
        return calibrated(matrix, products, block_for(len(matrix), block)).values()
    except ValueError:
        return None


def _matrix(module: nn.Module) -> Tensor:
    """A projection's weight as [in, out], a view."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach() if isinstance(module, Conv1D) else weight.detach().T


def _head_moments(model: PreTrainedModel, head: nn.Module, text: Tensor) -> Tensor:
    """Second moments [H, H] of what the head reads."""
    found: list[Tensor] = []

    def read(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = inputs[0].flatten(0, -2)
        found.append(rows.T @ rows)
        return (inputs[0][:, :1], *inputs[1:])

    handle = head.register_forward_pre_hook(read)
    try:
        for some in torch.split(text, _BATCH):
            model(input_ids=some, use_cache=False)
    finally:
        handle.remove()
    return torch.stack(found).sum(0) / text.numel()


@contextmanager
def _unrounded_first(table: nn.Module, text: Tensor) -> Iterator[None]:
    """Let a table that will be rounded give the first half of a batch the rows that it has now."""
    before, plain = table(text), table.forward
    with _forward(table, lambda ids: torch.cat([before, plain(ids[len(text) :])])):
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        vars(module).pop("forward", None)

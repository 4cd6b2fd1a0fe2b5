"""Which matrix gets how many bits: the least estimated loss of a model under a size in bits a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from paceline.export.feedback import Format, round_matrix, weighted_rounding
from paceline.export.passes import Floats, floats_of, matmuls, sizes
from paceline.export.products import Choose
from paceline.export.quantize import Quantised
from paceline.export.sensitivity import Sensitivity

FORMATS = (
    Format(4, 64, True),
    Format(4, 32, False),
    Format(4, 32, True),
    Format(5, 32, False),
    Format(5, 32, True),
    Format(6, 32, False),
    Format(8, 32, False),
)
LEAST_BITS, MOST_BITS = 4.5, 8.5
DEFAULT_BITS = 4.85
"""The size of Q4_K_M in llama.cpp."""
_STEPS = 1 << 16
"""Sizes are counted in parts of the largest total: what an allocation leaves unused is below a hundredth of a bit."""
_SAMPLED = 128
"""Columns of a matrix on which its loss is estimated."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The format of each matrix by its name in the graph. bits: of a weight, over all of them, scales included."""

    formats: Mapping[str, Format]
    bits: float


def make_recipe(graph: ir.Graph, measured: Mapping[str, Sensitivity], bits: float) -> Recipe:
    """Give every matrix of a simplified graph a format, at most `bits` a weight in all.

    measured: by parameter name. A matrix that it lacks counts with a loss of nothing but its own error. Raises
    ValueError for a size that the narrowest formats exceed.
    """
    weights = list(dict.fromkeys(w for node in matmuls(graph) if (w := node.inputs[1]) is not None))
    shapes = [(sizes(w)[0], sizes(w)[1]) for w in weights]
    total = sum(k * n for k, n in shapes)
    taken = [[form.size(k, n) for form in FORMATS] for k, n in shapes]
    losses = [_losses(floats_of(w), _measured(measured, str(w.name))) for w in weights]
    picked = allocate(losses, taken, int(bits * total))
    used = sum(options[at] for options, at in zip(taken, picked, strict=True))
    formats = {str(w.name): FORMATS[at] for w, at in zip(weights, picked, strict=True)}
    return Recipe(formats, used / max(1, total))


def follow(recipe: Recipe, measured: Mapping[str, Sensitivity]) -> Choose:
    """Rounds each matrix to its format, by error feedback where the moments of its inputs are known."""

    def choose(name: str, values: Floats) -> Quantised:
        known = _measured(measured, name)
        return round_matrix(values, recipe.formats[name], None if known is None else known.inputs())

    return choose


def allocate(losses: Sequence[Sequence[float]], taken: Sequence[Sequence[int]], budget: int) -> list[int]:
    """One option for each matrix, such that the sum of their losses is least and that of their sizes <= budget.

    A larger budget never gives a larger loss. Raises ValueError where the smallest options exceed the budget.
    """
    unit = max(1, sum(max(options) for options in taken) // _STEPS)
    room = budget // unit
    need = [[-(-size // unit) for size in options] for options in taken]
    smallest = [min(range(len(options)), key=options.__getitem__) for options in need]
    if sum(options[at] for options, at in zip(need, smallest, strict=True)) > room:
        if sum(min(options) for options in taken) > budget:
            least = sum(min(options) for options in taken)
            raise ValueError(f"the narrowest formats take {least} bits, more than the {budget} allowed")
        return smallest
    best = np.zeros(room + 1)
    trail = np.zeros((len(taken), room + 1), np.uint8)
    for row, options in enumerate(need):
        now = np.full(room + 1, np.inf)
        for at, size in enumerate(options):
            if size <= room:
                with_it = best[: room + 1 - size] + losses[row][at]
                better = with_it < now[size:]
                now[size:][better] = with_it[better]
                trail[row, size:][better] = at
        best = now
    left, picked = room, []
    for row in reversed(range(len(taken))):
        picked.append(int(trail[row, left]))
        left -= need[row][picked[-1]]
    return picked[::-1]


def _losses(values: Floats, known: Sensitivity | None) -> list[float]:
    """The estimated loss of each format, from evenly spread columns: half the curvature times the squared error."""
    k, n = values.shape
    columns = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64))
    part = torch.from_numpy(np.ascontiguousarray(values[:, columns]))
    importance = torch.ones(k) if known is None else known.importance()
    of_column = torch.ones(n) if known is None else known.of_columns(n)
    chosen = of_column[torch.from_numpy(columns)]
    share = float(of_column.sum() / chosen.sum().clamp_min(1e-30))

    def loss(form: Format) -> float:
        error = (weighted_rounding(part, form, importance) - part).square_()
        return 0.5 * share * float((importance @ error) @ chosen)

    return _falling([loss(form) for form in FORMATS], [form.size(k, n) for form in FORMATS])


def _falling(losses: list[float], taken: list[int]) -> list[float]:
    """An option that is larger and estimated worse is not taken for it: chance alone made it so."""
    return [max(losses[j] for j in range(len(losses)) if taken[j] >= taken[i]) for i in range(len(losses))]


def _measured(measured: Mapping[str, Sensitivity], name: str) -> Sensitivity | None:
    """A matrix of a graph is named after its parameter, or after the first of those that it joins."""
    return measured.get(name.removesuffix(".fused").removesuffix(".T"))

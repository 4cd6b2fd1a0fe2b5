"""Which matrix gets how many bits: the least estimated loss of a model under a size in bits a weight."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from paceline.export.feedback import Format, round_matrix, weighted_rounding
from paceline.export.mixing import Choose
from paceline.export.passes import Floats
from paceline.export.quantize import Quantised
from paceline.export.sensitivity import Sensitivity, projection_weights
from paceline.export.source import Loaded

FORMATS = (
    Format(4, 64, True),
    Format(4, 32, False),
    Format(4, 32, True),
    Format(5, 32, False),
    Format(5, 32, True),
    Format(6, 32, False),
    Format(8, 32, False),
)
DEFAULT_BITS = 4.85
"""The size of Q4_K_M in llama.cpp."""
_STEPS = 1 << 16
"""Sizes are counted in parts of the largest total: what an allocation leaves unused is below a hundredth of a bit."""
_SAMPLED = 128
"""Columns of a matrix on which its loss is estimated."""


_UNSEEN = Format(8, 32, False)
"""Of a projection that the text did not reach."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The format of each projection by parameter name. bits: of a weight, over all of them, scales included."""

    formats: Mapping[str, Format]
    bits: float

    def told(self) -> str:
        """Bits and how many weights have them, in words."""
        count = Counter(f"{form.bits} bits" for form in self.formats.values())
        return ", ".join(f"{many} matrices at {bits}" for bits, many in sorted(count.items()))


def make_recipe(loaded: Loaded, measured: Mapping[str, Sensitivity], bits: float | None) -> Recipe:
    """Give every projection of a model a format, at most `bits` a weight in all; those of one input share one.

    measured: by parameter name; what it lacks has 8 bits. bits: None is the default, or the least where that is more:
    narrow matrices are padded to whole blocks. Raises ValueError for fewer than the least.
    """
    groups: dict[int, list[str]] = defaultdict(list)
    weights = projection_weights(loaded.model)
    for name in weights:
        groups[id(measured[name]) if name in measured else -1].append(name)
    unseen = groups.pop(-1, [])
    taken, losses = [], []
    for names in groups.values():
        # One group at a time: all of them together would be the model once more.
        matrix = torch.cat([weights[name] for name in names], dim=1)
        taken.append([form.size(*matrix.shape) for form in FORMATS])
        losses.append(_losses(matrix, measured[names[0]]))
    total = sum(weight.numel() for weight in weights.values())
    fixed = sum(_UNSEEN.size(*weights[name].shape) for name in unseen)
    least = fixed + sum(map(min, taken))
    budget = max(int(DEFAULT_BITS * total), least) if bits is None else int(bits * total)
    if budget < least:
        raise ValueError(
            f"--bits {bits:g} is too few: this model takes at least {ceil(100 * least / total) / 100} bits"
        )
    picked = allocate(losses, taken, budget - fixed)
    used = fixed + sum(options[at] for options, at in zip(taken, picked, strict=True))
    formats = dict.fromkeys(unseen, _UNSEEN)
    for names, at in zip(groups.values(), picked, strict=True):
        formats |= dict.fromkeys(names, FORMATS[at])
    return Recipe(formats, used / max(1, total))


def follow(recipe: Recipe, measured: Mapping[str, Sensitivity]) -> Choose:
    """Rounds each matrix to its format, by error feedback where the moments of its inputs are known."""

    def choose(name: str, values: Floats) -> Quantised:
        known = measured.get(name)
        form = recipe.formats.get(name, _UNSEEN)
        return round_matrix(values, form, None if known is None else known.inputs())

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


def _losses(weight: Tensor, known: Sensitivity) -> list[float]:
    """The estimated loss of each format, from evenly spread columns: half the curvature times the squared error."""
    n = weight.shape[1]
    columns = torch.linspace(0, n - 1, min(n, _SAMPLED)).long()
    part, chosen = weight[:, columns].contiguous(), known.outputs[columns]
    share = float(known.outputs.sum() / chosen.sum().clamp_min(1e-30))

    def loss(form: Format) -> float:
        error = (weighted_rounding(part, form, known.importance()) - part).square_()
        return 0.5 * share * float((known.importance() @ error) @ chosen)

    return [loss(form) for form in FORMATS]

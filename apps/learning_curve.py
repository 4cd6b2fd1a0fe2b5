"""How drafters learn over the requests of a bench: acceptance and tokens a round, with and without learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.bench_measure import OFF, Measured, Run
from paceline.plot import canvas, write

RUNNING = 20
"""Requests that a running mean is over, this one the last."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One drafter. accepted: share of the tested tokens, by request, None where none was tested; round_tokens: tokens a
    round. The running ones are those of the last requests together.
    """

    contender: str
    accepted: tuple[float | None, ...]
    round_tokens: tuple[float | None, ...]
    running_accepted: tuple[float | None, ...]
    running_round_tokens: tuple[float | None, ...]


def learning_curves(measured: Measured, learning: Sequence[str]) -> list[Curve]:
    """Of each drafter that learns, and then of the same without learning; several passes are added up."""
    return [_curve(c, measured.runs) for name in learning for c in (name, name + OFF)]


def _curve(contender: str, runs: Sequence[Run]) -> Curve:
    passes: dict[int, list[Run]] = {}
    for run in runs:
        if run.contender == contender:
            passes.setdefault(run.repeat, []).append(run)
    counts = [
        tuple(sum(getattr(run, name) for run in together) for name in ("accepted", "tested", "rounds"))
        for together in zip(*passes.values(), strict=False)
    ]
    last = [
        tuple(map(sum, zip(*counts[max(end - RUNNING, 0) : end], strict=True)))
        for end in range(1, len(counts) + 1)
    ]
    shares = [[_share(accepted, tested) for accepted, tested, _ in each] for each in (counts, last)]
    rates = [[_share(accepted + rounds, rounds) for accepted, _, rounds in each] for each in (counts, last)]
    return Curve(contender, tuple(shares[0]), tuple(rates[0]), tuple(shares[1]), tuple(rates[1]))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def draw_curves(curves: Sequence[Curve], title: str, file: Path) -> None:
    """Write a .png or .svg: each request a thin line, the running mean a thick one; without learning it is broken."""
    figure, panels = canvas(7.2, 5.4, rows=2)
    requests = range(1, max(len(curve.accepted) for curve in curves) + 1)
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(_base(c) for c in curves))}
    for curve in curves:
        off = curve.contender.endswith(OFF)
        colour, style = colours[_base(curve)], "--" if off else "-"
        label = f"{_base(curve)}, {'not learning' if off else 'learning'}"
        for axes, each, running in zip(
            panels,
            (curve.accepted, curve.round_tokens),
            (curve.running_accepted, curve.running_round_tokens),
            strict=True,
        ):
            here = requests[: len(each)]
            axes.plot(here, [_gap(v) for v in each], style, color=colour, linewidth=0.6, alpha=0.35)
            axes.plot(here, [_gap(v) for v in running], style, color=colour, linewidth=2, label=label)
    for axes, what in zip(panels, ("drafts accepted", "tokens a round"), strict=True):
        axes.set_ylabel(what)
    panels[-1].set_xlabel(f"requests (thick: mean of the last {RUNNING})")
    panels[0].legend(frameon=False, loc="upper left")
    write(figure, title, file)


def _base(curve: Curve) -> str:
    return curve.contender.removesuffix(OFF)


def _gap(value: float | None) -> float:
    """A hole in a line where there is no value."""
    return float("nan") if value is None else value

"""What a bench found: figures per contender and task group, as tables and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.bench_measure import AUTO, CONTROL, OFF, PLAIN, Measured, Run, add_by_name, add_up

OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles by linear interpolation; one value is its own."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} {self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer unlike plain decoding's: the token where it leaves it, and how many differ from there on."""

    task: str
    repeat: int
    first: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one task group. ratio: its tokens/s over plain decoding's, prompt by prompt."""

    group: str
    contender: str
    prompts: int
    tokens: int
    tokens_per_second: float
    ratio: Spread
    tokens_per_round: float
    acceptance_rate: float
    accepted_by_depth: tuple[int, ...]
    tested_by_depth: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    judge_seconds: float
    wait_seconds: float
    decode_seconds: float
    prefill_seconds: float
    prompt_tokens: int
    differences: tuple[Difference, ...]
    beside: dict[str, float]
    """Counts and seconds of `Tally`; empty where nothing was drafted beside the target's passes."""
    chosen: dict[str, float]
    """Share of the tokens by the drafter in charge; empty where none was chosen."""
    trace: tuple[str, ...]

    @property
    def prompt_tokens_per_second(self) -> float:
        """0 where nothing had to be read."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    def milliseconds(self, seconds: float) -> float:
        """A sum over all answers as milliseconds a token."""
        return 1e3 * seconds / self.tokens if self.tokens else 0.0


def best_of(found: Sequence[Row]) -> Row | None:
    """The drafter that was fastest over all prompts; None where none beat plain decoding and its control."""
    first = fastest(found)
    return first if first is not None and first.ratio.median > plain_ratio(found) else None


def fastest(found: Sequence[Row]) -> Row | None:
    """The same, beaten or not.

    One that had nothing accepted was fast by chance, and one that was kept from learning is there for comparison.
    """
    overall = [r for r in found if r.group == OVERALL and r.contender not in (PLAIN, CONTROL)]
    drafting = [r for r in overall if r.tokens_per_round > 1 and not r.contender.endswith(OFF)]
    return max(drafting, key=lambda r: r.ratio.median, default=None)


def plain_ratio(found: Sequence[Row]) -> float:
    """What plain decoding has against itself: 1, or what its control has, if that is more."""
    plain = [r.ratio.median for r in found if r.group == OVERALL and r.contender in (PLAIN, CONTROL)]
    return max(1.0, *plain)


def rows(measured: Measured, groups: Sequence[str]) -> list[Row]:
    """One row for every contender in each of `groups` that was measured, then the overall ones."""
    found = list(measured.runs)
    contenders = list(dict.fromkeys(r.contender for r in sorted(found, key=lambda r: r.repeat)))
    contenders.sort(key=lambda c: (PLAIN, CONTROL).index(c) if c in (PLAIN, CONTROL) else 2)
    there = {r.task.group for r in found}
    parts = [(g, [r for r in found if r.task.group == g]) for g in groups if g in there]
    return [_row(group, c, runs) for group, runs in [*parts, (OVERALL, found)] for c in contenders]


def _row(group: str, contender: str, runs: Iterable[Run]) -> Row:
    everyone = list(runs)
    plain = {(r.task.name, r.repeat): r for r in everyone if r.contender == PLAIN}
    own = [r for r in everyone if r.contender == contender]
    tested, accepted = sum(r.tested for r in own), sum(r.accepted for r in own)
    rounds, tokens = sum(r.rounds for r in own), sum(len(r.tokens) for r in own)
    seconds = sum(r.decode_seconds for r in own)
    return Row(
        group,
        contender,
        prompts=len({r.task.name for r in own}),
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        ratio=Spread.of(_ratios(own, plain)),
        tokens_per_round=(accepted + rounds) / rounds if rounds else 0.0,
        acceptance_rate=accepted / tested if tested else 0.0,
        accepted_by_depth=add_up(r.accepted_by_depth for r in own),
        tested_by_depth=add_up(r.tested_by_depth for r in own),
        draft_seconds=sum(r.draft_seconds for r in own),
        verify_seconds=sum(r.verify_seconds for r in own),
        judge_seconds=sum(r.judge_seconds for r in own),
        wait_seconds=sum(r.wait_seconds for r in own),
        decode_seconds=seconds,
        prefill_seconds=sum(r.prefill_seconds for r in own),
        prompt_tokens=sum(r.prompt_tokens for r in own),
        differences=tuple(d for r in own if (d := _difference(r, plain[r.task.name, r.repeat]))),
        beside=add_by_name(pair for r in own for pair in r.beside),
        chosen=_chosen(own) if contender == AUTO else {},
        trace=own[-1].trace if own else (),
    )


def _chosen(own: Sequence[Run]) -> dict[str, float]:
    tokens = add_by_name(pair for run in own for pair in run.chosen)
    whole = sum(tokens.values())
    return (
        {name: count / whole for name, count in sorted(tokens.items(), key=lambda p: -p[1])} if whole else {}
    )


def _ratios(own: Sequence[Run], plain: dict[tuple[str, int], Run]) -> list[float]:
    """One ratio a prompt, the median over the repeats; a prompt answered with nothing has none."""
    by_task: dict[str, list[float]] = {}
    for run in own:
        base = plain[run.task.name, run.repeat]
        if run.tokens and base.tokens:
            by_task.setdefault(run.task.name, []).append(run.tokens_per_second / base.tokens_per_second)
    return [statistics.median(values) for values in by_task.values()] or [1.0]


def _difference(run: Run, plain: Run) -> Difference | None:
    ours, theirs = run.tokens, plain.tokens
    if ours == theirs:
        return None
    shorter = min(len(ours), len(theirs))
    first = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    unequal = sum(a != b for a, b in zip(ours[first:], theirs[first:], strict=False))
    return Difference(run.task.name, run.repeat, first, unequal + abs(len(ours) - len(theirs)))


def as_dict(row: Row) -> dict[str, Any]:
    """One row of `bench --json`."""
    return {
        "group": row.group,
        "drafter": row.contender,
        "prompts": row.prompts,
        "tokens": row.tokens,
        "tokens_per_second": round(row.tokens_per_second, 3),
        "ratio": {
            "median": round(row.ratio.median, 4),
            "quartiles": [round(row.ratio.low, 4), round(row.ratio.high, 4)],
        },
        "tokens_per_round": round(row.tokens_per_round, 4),
        "acceptance_rate": round(row.acceptance_rate, 4),
        "prompt_tokens_per_second": round(row.prompt_tokens_per_second, 3),
        "accepted_by_depth": list(row.accepted_by_depth),
        "tested_by_depth": list(row.tested_by_depth),
        "seconds": {
            "prefill": round(row.prefill_seconds, 4),
            "draft": round(row.draft_seconds, 4),
            "verify": round(row.verify_seconds, 4),
            "judge": round(row.judge_seconds, 4),
            "wait": round(row.wait_seconds, 4),
            "decode": round(row.decode_seconds, 4),
        },
        "beside": {name: round(count, 4) for name, count in row.beside.items()} or None,
        "chosen": {name: round(share, 4) for name, share in row.chosen.items()},
        "trace": list(row.trace),
        "identical": not row.differences,
        "differences": [
            {"prompt": d.task, "repeat": d.repeat, "first": d.first, "tokens": d.tokens}
            for d in row.differences
        ],
    }

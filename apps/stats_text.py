"""Statistics in words. The definitions stand in docs/statistics.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from paceline.wrap import fold

if TYPE_CHECKING:
    from paceline.runtime.beside import Tally
    from paceline.runtime.stats import Statistics

_SECONDS = ("prefill", "draft", "verify", "judge", "wait", "total")

SLID = "the context of {context} tokens is full: its oldest part is left out from here on"
"""Said once, where --overflow slide dropped text."""


class Limit(NamedTuple):
    """What cut an answer."""

    by_context: bool
    text: str


def length_words(stats: Statistics, max_tokens: int | None, context: int, setting: str) -> Limit:
    """Which limit an answer reached that ended with "length". setting: where the other one is set."""
    if max_tokens is not None and stats.generated_tokens >= max_tokens:
        return Limit(False, f"cut after {max_tokens} tokens, the limit of {setting}")
    return Limit(
        True,
        f"cut: the context of {context} tokens is full ({stats.prompt_tokens} of the prompt, "
        f"{context - stats.prompt_tokens} of the answer)",
    )


def left_out_words(role: str, bundle: str) -> str:
    """A message that the model never sees."""
    what = "the system prompt" if role == "system" else f"a message of the role {role!r}"
    return f"{what} is left out: the chat template of {bundle} has no place for it"


def unread_words(variable: str, bundle: str) -> str:
    """A variable of the chat template that changes nothing."""
    what = {"tools": "the list of tools", "enable_thinking": "the choice to think or not"}.get(
        variable, f"the template value {variable!r}"
    )
    return f"{what} has no effect: the chat template of {bundle} never names {variable!r}"


def speed_words(stats: Statistics) -> str:
    """One line for everybody. What plain decoding would do is said only where its cost is known."""
    times = stats.times_plain
    compared = "" if times is None else f", about {times:.1f}x plain decoding"
    return f"{stats.generated_tokens} tokens, {_speed(stats.decode_tokens_per_second)} tokens/s{compared}"


def statistics_lines(stats: Statistics, full: bool = False) -> list[str]:
    """A few lines that fit 80 columns; with `full` what drafters and controller did, too."""
    lines = [speed_words(stats), _prompt_words(stats), _drafting_words(stats), *_memory_words(stats)]
    if full:
        lines += _log(stats)
    return [part for line in lines for part in fold(line, 81, " " * 6).splitlines()]


def _prompt_words(stats: Statistics) -> str:
    reused = f", {stats.reused_tokens} of them from the cache" if stats.reused_tokens else ""
    speed = stats.prompt_tokens_per_second
    read = f", read at {_speed(speed)} tokens/s" if speed else ""
    first = stats.first_token_seconds
    begun = "" if first is None else f"first token after {_milliseconds(first)} ms; "
    return f"{begun}prompt of {stats.prompt_tokens} tokens{reused}{read}"


def _drafting_words(stats: Statistics) -> str:
    if not stats.tested:
        how = (
            "plain decoding" if stats.drafter == "none" else f"drafter {stats.drafter} proposed nothing here"
        )
        return f"{how}: 1 token a pass of the model"
    return (
        f"drafter {_who(stats)}: {stats.tokens_per_round:.2f} tokens a pass of the model; accepted "
        f"{stats.acceptance_rate:.0%} of what was tested"
    )


def _who(stats: Statistics) -> str:
    """Who was in charge; where one chose among several, of which share of the tokens."""
    tokens = {} if stats.control is None else stats.control.tokens
    if len(tokens) < 2:
        return next(iter(tokens), stats.drafter)
    whole = sum(tokens.values())
    shares = sorted(tokens.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share / whole:.0%}" for name, share in shares if 50 * share > whole)


def _memory_words(stats: Statistics) -> list[str]:
    peak = stats.as_dict().get("peak_rss_bytes")
    if not peak:
        return []
    planned = f", planned {stats.planned_bytes / 1e6:.0f} MB" if stats.planned_bytes else ""
    seed = "" if stats.seed is None else f"; seed {stats.seed}"
    return [f"peak memory {peak / 1e6:.0f} MB{planned}, cache in {stats.cache}{seed}"]


def _log(stats: Statistics) -> list[str]:
    """For developers, and for whoever wants to know why."""
    lines = ["in detail (docs/statistics.md):", f"{stats.rounds} rounds, load {_load(stats)} ms"]
    if stats.tested:
        lines.append(f"drafted {stats.drafted}, tested {stats.tested}, accepted {stats.accepted}")
        lines.append("accepted by depth: " + _by_depth(stats))
    if len(stats.accepted_by_source) > 1:
        lines.append(
            "accepted by source: " + ", ".join(f"{k} {v}" for k, v in stats.accepted_by_source.items())
        )
    spent = [(name, stats.seconds.get(name, 0.0)) for name in _SECONDS]
    lines.append("ms: " + ", ".join(f"{name} {_milliseconds(s)}" for name, s in spent if s or name != "wait"))
    if stats.beside is not None:
        lines.append(_beside_words(stats.beside))
    if stats.control is not None:
        lines += stats.control.lines()
    lines += [f"lost: {name}: {how}" for name, how in stats.lost.items()]
    lines += [f"auto: {why}" for why in stats.placed.values()]
    if stats.mirror is not None:
        lines.append(f"mirror auto: {stats.mirror}")
    if stats.devices:
        lines.append("devices: " + ", ".join(f"{part} on {where}" for part, where in stats.devices.items()))
    return lines


def _beside_words(tally: Tally) -> str:
    whole = tally.hits + tally.misses
    ready = (
        f"{tally.hits} of {whole} drafts ready ({tally.hits / whole:.0%})" if whole else "no draft looked for"
    )
    ran = f"{tally.passes} draft passes, {_milliseconds(tally.seconds)} ms"
    return f"beside the model: {ready}; {ran}" + (f"; failed: {tally.failure}" if tally.failure else "")


def failed_words(stats: Statistics) -> str | None:
    """What nobody should miss of work beside the model's passes; None where it was done."""
    if stats.beside is None or stats.beside.failure is None:
        return None
    how = stats.beside.failure
    return f"drafting beside the model failed ({how}); the answer is right, and was slower from there on"


def lost_words(stats: Statistics) -> list[str]:
    """A line for each part whose device failed in this session."""
    right = "the answer is right, and was slower from there on"
    return [
        f"{'the model goes on on the CPU' if name == 'target' else f'{name} drafts no more'} ({how}); {right}"
        for name, how in stats.lost.items()
    ]


def _load(stats: Statistics) -> str:
    return _milliseconds(stats.seconds["load"])


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:.{0 if tokens_per_second >= 100 else 1}f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f}"


def _by_depth(stats: Statistics) -> str:
    shown = [
        f"{depth}:{accepted / tested:.0%}"
        for depth, (accepted, tested) in enumerate(
            zip(
                [*stats.accepted_by_depth, *[0] * len(stats.tested_by_depth)],
                stats.tested_by_depth,
                strict=False,
            ),
            1,
        )
        if tested
    ][:10]
    return "  ".join(shown)

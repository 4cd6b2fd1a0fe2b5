"""The two halves of a target that has a split."""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from paceline.runtime.part import SHARED, Part, Tap, over_cache


def halves(target: Part) -> tuple[Part, Part]:
    """The two halves of a target that has a split, each as a skip of the other: the first one gives the hidden states
    behind its last layer as a tap, the rest is fed with them."""
    split = target.split
    if split is None:
        raise ValueError(f"{target.graph} is in one piece")
    numbers = range(target.layers)
    blocks = {n: [f"{half}.{n}" for half in ("attention", "mlp")] for n in numbers}
    early = [tap for tap in target.taps if tap != "hidden" and int(tap.partition(".")[2]) <= split.layer]

    def half(path: str, taps: list[Tap], without: list[int], features: int | None) -> Part:
        return replace(
            target,
            graph=path,
            caches={form: over_cache(path, form) for form in target.caches},
            kind="skip",
            taps=taps,
            without=[block for n in without for block in blocks[n]],
            features=features,
            split=None,
        )

    first = half(split.first, early, [n for n in numbers if n > split.layer], None)
    others = [tap for tap in target.taps if tap not in early]
    return first, half(split.rest, others, [n for n in numbers if n <= split.layer], target.hidden)


def wrong_split(part: Part, target: Part, files: Container[str]) -> str:
    """What is wrong with the split of a part; empty where nothing is."""
    split = part.split
    if split is None:
        return ""
    if part is not target:
        return "is in two halves, as only a target may be"
    if f"hidden.{split.layer}" not in part.taps or split.layer >= part.layers - 1:
        return (
            f"is split behind layer {split.layer}, of which it gives no tap, or behind which nothing is left"
        )
    if split.named > part.vocab:
        return f"names {split.named} tokens of {part.vocab}"
    taken = {*part.graphs}
    for half in halves(part):
        if half.data != part.data or part.data.rpartition("/")[2] != SHARED:
            return "has a half that does not stand beside its weights"
        for path in half.graphs:
            if path not in files or path in taken:
                return f"has {path!r} for a half, which is not among its files or has another use"
            taken.add(path)
    return ""

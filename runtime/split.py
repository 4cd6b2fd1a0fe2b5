"""The two halves of a target that has a split."""

from __future__ import annotations

from collections.abc import Container
from pathlib import PurePosixPath

from paceline.runtime.part import SHARED, Part, Split, Tap, made_of, over_cache

IDS, CHANCES = "early_ids", "early_chances"
"""What the first half says of each row, int64 and float32[R, named]."""


def halves(target: Part) -> tuple[Part, Part]:
    """The two halves of a target that has a split, each as a skip of the other: the first one, which has the split with
    what it says early, gives the hidden states behind its last layer as a tap, the rest is fed with them."""
    split = target.split
    if split is None:
        raise ValueError(f"{target.graph} is in one piece")
    numbers = range(target.layers)
    blocks = {n: [f"{half}.{n}" for half in ("attention", "mlp")] for n in numbers}
    early = [tap for tap in target.taps if tap != "hidden" and int(tap.partition(".")[2]) <= split.layer]

    def half(path: str, taps: list[Tap], without: list[int], own: Split | None, features: int | None) -> Part:
        return made_of(
            target,
            graph=path,
            caches={form: over_cache(path, form) for form in target.caches},
            kind="skip",
            taps=taps,
            without=[block for n in without for block in blocks[n]],
            features=features,
            split=own,
        )

    first = half(split.first, early, [n for n in numbers if n > split.layer], split, None)
    others = [tap for tap in target.taps if tap not in early]
    return first, half(split.rest, others, [n for n in numbers if n <= split.layer], None, target.hidden)


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
    known = part.vocab if split.vocab is None else split.vocab
    if not split.named <= known <= part.vocab:
        return f"names {split.named} tokens of {known}, of the {part.vocab} that it has"
    taken = {*part.graphs, part.data}
    for half in halves(part):
        if half.data != part.data or part.data.rpartition("/")[2] != SHARED:
            return "has a half that does not stand beside its weights"
        for path in half.graphs:
            if path not in files or path in taken:
                return f"has {path!r} for a half, which is not among its files or has another use"
            taken.add(path)
    if (own := split.data) is not None:
        beside = PurePosixPath(own).parent == PurePosixPath(split.first).parent
        if own not in files or own in taken or not beside:
            return f"has {own!r} for weights of a half, which is no file of its own beside the graphs"
    return ""

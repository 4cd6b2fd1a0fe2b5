"""What draft models can learn, and have learnt, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.runtime.adaptation.learner import Learned
    from paceline.runtime.manifest import Manifest, Part

_NOBODY = (
    "no draft model learns here: start with --adapt on, a drafter with a model, and a bundle whose draft models can "
    "learn (paceline export BUNDLE OUT --adapt 8)"
)


def learned_lines(learned: Sequence[Learned]) -> list[str]:
    """A few lines for each draft model."""
    return [line for each in learned for line in _lines(each)] or [_NOBODY]


def _lines(learned: Learned) -> list[str]:
    loss = "" if learned.loss is None else f", loss {learned.loss:.3f}, without them {learned.without:.3f}"
    more = ", more to learn" if learned.waiting else ""
    lines = [
        f"{learned.name}: {learned.steps} steps in {learned.seconds:.1f} s{loss}{more}",
        f"  accepted: {_share(learned.before)} before, {_share(learned.after)} in the last answers since",
    ]
    if learned.returns:
        times = "once" if learned.returns == 1 else f"{learned.returns} times"
        lines.append(
            f"  was worse than nothing learnt {times}: went back to what was better, and learns slower since"
        )
    if learned.file is None:
        lines.append("  kept nowhere: this user has no cache folder")
    elif learned.bytes is None:
        lines.append(
            f"  {learned.adapter_bytes / 1e3:,.0f} kB of adapters, kept when the session ends in {learned.file}"
        )
    else:
        lines.append(
            f"  {learned.adapter_bytes / 1e3:,.0f} kB of adapters, {learned.bytes / 1e3:,.0f} kB in {learned.file}"
        )
    return [*lines, *([] if learned.fault is None else [f"  {learned.fault}"])]


def _share(rate: float | None) -> str:
    return "nothing" if rate is None else f"{rate:.1%}"


def adapter_words(part: Part, manifest: Manifest) -> str:
    """The adapters of a part, what they are on, and the graph that trains them."""
    # Factors are packed in columns of 16: the first is [.., K, 16], the second [N / 16, rank, 16].
    # What predicts acceptance comes last, and alone.
    shapes = list(part.adapters.values())
    pairs = list(zip(shapes[::2], shapes[1::2], strict=False))
    sizes = [f"{first[1]} x {second[0] * second[2]}" for first, second in pairs]
    sizes[-1] = f"the LM head of {sizes[-1]}"
    on = f"{', '.join(sizes[:-1])} and {sizes[-1]}" if len(sizes) > 1 else sizes[0]
    step = manifest.files[str(part.training)].bytes
    when = "" if part.predictor is None else f"when a chain ends it learns, too ({part.predictor}); "
    return (
        f"with --adapt on: adapters of rank {pairs[-1][1][1]}, {part.adapter_bytes / 1e3:,.0f} kB, on {on}; {when}"
        f"a step is {part.training}, {step / 1e3:,.0f} kB"
    )


def learnt(manifest: Manifest, part: Part) -> dict[str, Any]:
    """What this user's file of a draft model holds, for `inspect --json`."""
    from paceline.runtime.adaptation.saved import SavedAdapters, pair_of

    saved = SavedAdapters(pair_of(manifest, part))
    steps = saved.steps()
    file = None if saved.bytes is None else str(saved.path)
    return {"steps": steps, "file": file, "bytes": saved.bytes, "fault": saved.fault}


def learnt_words(manifest: Manifest, part: Part) -> str:
    """The same in words."""
    found = learnt(manifest, part)
    if found["fault"]:
        return str(found["fault"])
    if not found["steps"]:
        return "nothing yet for this target"
    return f"{found['steps']:,} steps, {found['bytes'] / 1e3:,.0f} kB in {found['file']}"

"""Static graphs go where what is added to a part cannot be added to them, and that is said."""

from __future__ import annotations

from pathlib import Path

import msgspec

from paceline.runtime.manifest import Manifest, Part


def drop_static(part: Part, folder: Path) -> Part:
    """The same part without static graphs, whose files leave the folder of a bundle that is being made."""
    made = msgspec.structs.replace(part, static=None)
    for path in {*part.graphs, *part.stores} - {*made.graphs, *made.stores}:
        (folder / path).unlink()
    return made


def notes_on_static(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """In words, which parts of a bundle lost their static graphs in one that was made of it, and what to do."""
    before, after = ({"target": m.target, **m.drafters} for m in (old, new))
    return tuple(
        f"{name}: {_lost(after[name], 'cpu+static' if part.layout is not None else 'static')}"
        for name, part in before.items()
        if part.static is not None and after[name].static is None
    )


def _lost(part: Part, profile: str) -> str:
    if part.adapters:
        return "its static graphs are left out, for they cannot learn: accelerators run the bundle of before"
    return (
        "its static graphs are left out, for they do not give what is read of it now: accelerators run the bundle of "
        f"before, or the model exported again with --profile {profile} --taps {','.join(part.taps)}"
    )

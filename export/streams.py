"""Streams of a trained draft model: what its folder says of them, and the part that it becomes."""

from __future__ import annotations

from typing import Any

import msgspec

from paceline.export.errors import ExportError
from paceline.runtime.part import Part, wrong_streams

MARK = "paceline_drafter"
"""In its config.json: the target that it was trained for, how often its drafts were right, and how many streams it has.
"""
_MOST = 15
_EVERY = 4
"""Tokens of a checked text before each stream."""


def streams_of(config: Any) -> int:
    """How many of the last ids of a model are streams, by its configuration. Raises ExportError for nonsense."""
    if not (streams := _mark(config).get("streams", 0)):
        return 0
    if not (isinstance(streams, int) and 0 <= streams <= min(_MOST, config.vocab_size - 2)):
        raise ExportError(f"its config.json says {streams!r:.40} streams: train it again")
    return int(streams)


def streaming(name: str, part: Part, config: Any) -> Part:
    """The part of a draft model with streams as what it is; any other as it was. Raises ExportError for a target."""
    if not (streams := streams_of(config)):
        return part
    if name == "target":
        raise ExportError(
            "a draft model with streams drafts for its target and is none: give it with --drafter"
        )
    accepted = [share for share in _mark(config).get("acceptance", []) if isinstance(share, float)]
    return msgspec.structs.replace(
        part,
        kind="streaming decoder",
        streams=streams,
        product=True,
        method="streaming",
        accepted=accepted[: streams + 1],
    )


def with_streams(ids: list[int], vocab: int, streams: int) -> list[int]:
    """A text to check with, all streams of a vocabulary in turn between its tokens."""
    mixed = list[int]()
    for place, token in enumerate(ids):
        mixed.append(token)
        if streams and place % _EVERY == 0:
            mixed.append(vocab - streams + place // _EVERY % streams)
    return mixed


def check_streams(name: str, part: Part, target: Part, adapt: int | None) -> None:
    """Raise ExportError for a draft model whose streams do not go with a target, or with adapters of a rank."""
    if part.streams and adapt is not None:
        raise ExportError(f"{name} has streams and does not learn from use: export it without --adapt")
    if part.streams and part.tokenizer is not None:
        raise ExportError(
            f"{name} has streams and another tokenizer than the target: train one for this target"
        )
    if wrong := wrong_streams(part, target):
        raise ExportError(f"{name} {wrong}: train one for this target (paceline train drafter --streams)")


def _mark(config: Any) -> dict[str, Any]:
    found = getattr(config, MARK, None)
    return found if isinstance(found, dict) else {}

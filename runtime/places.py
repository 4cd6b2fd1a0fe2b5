"""Where each part of a bundle runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.options import Options

AUTO = "auto"
"""The device word that leaves it to what was measured."""


@dataclass(frozen=True, slots=True)
class Places:
    """The devices of the target, of draft models, and of draft heads. apart: those of single parts, by their graph."""

    target: Device
    draft: Device
    heads: Device
    apart: Mapping[str, Device] = field(default_factory=dict)

    def of(self, part: Part) -> Device:
        """That of a part that drafts: what drafts with the target's layers runs where the target's cache is."""
        if part.kind in ("skip", "exit"):
            return self.target
        return self.apart.get(part.graph) or (self.heads if part.kind == "head" else self.draft)


def places_of(options: Options) -> Places:
    """Those that were asked for, the CPU where it is `auto`. Raises DeviceError for one that cannot be used."""
    target, draft, heads = (find_device("cpu" if word == AUTO else word) for word in words_of(options))
    return Places(target, draft, heads)


def words_of(options: Options) -> tuple[str, str, str]:
    """What was asked for: the words for the target, for draft models, and for draft heads."""
    draft = options.device_draft or options.device
    return options.device, draft, options.device_heads or draft

"""Where each part of a bundle runs."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.options import Options


@dataclass(frozen=True, slots=True)
class Places:
    """The devices of the target, of draft models, and of draft heads."""

    target: Device
    draft: Device
    heads: Device

    def of(self, part: Part) -> Device:
        """That of a part that drafts: what drafts with the target's layers runs where the target's cache is."""
        if part.kind in ("skip", "exit"):
            return self.target
        return self.heads if part.kind == "head" else self.draft


def places_of(options: Options) -> Places:
    """Those that were asked for. Raises DeviceError for one that cannot be used."""
    target = find_device(options.device)
    draft = find_device(options.device_draft) if options.device_draft else target
    return Places(target, draft, find_device(options.device_heads) if options.device_heads else draft)

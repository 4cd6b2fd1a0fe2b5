"""Which numpy computes what a head of each method computes."""

from __future__ import annotations

from collections.abc import Mapping

from paceline.export.heads.block_reference import BlockReference
from paceline.export.heads.clover_reference import CloverReference
from paceline.export.heads.config import Method
from paceline.export.heads.falcon_reference import FalconReference
from paceline.export.heads.head import Head
from paceline.export.heads.reference import Reference
from paceline.export.passes import Floats

_OTHERS: dict[Method, type[Reference]] = {
    "dflash": BlockReference,
    "clover": CloverReference,
    "falcon": FalconReference,
}


def reference_of(head: Head, weights: Mapping[str, Floats] | None = None) -> Reference:
    """The head in numpy. weights: by the names of the checkpoint, in place of its own."""
    return _OTHERS.get(head.config.method, Reference)(head, weights)

"""How much may be drafted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What drafting may take: as a user wishes it, as a plan chose it, as a rung of the ladder leaves it.

    nodes besides the root, levels below it. models, tables: whether drafters with a draft model, and without one, may
    run. draft_rows: rows of a draft model's cache, None for those of the whole context.
    """

    nodes: int
    depth: int
    models: bool = True
    tables: bool = True
    draft_rows: int | None = None

"""Choices of a load that were made in vain: what was asked for is not there, or nobody uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from paceline.runtime.drafters.words import PLAIN, keeps_store

if TYPE_CHECKING:
    from paceline.runtime.manifest import Part
    from paceline.runtime.options import Options


class Unused(NamedTuple):
    """A choice by the name of its field, and in words what becomes of it."""

    name: str
    value: str
    words: str

    @property
    def flag(self) -> str:
        """A line for the command line."""
        return f"--{self.name.replace('_', '-')}{self.value and f' {self.value}'} {self.words}"

    @property
    def argument(self) -> str:
        """A line for Python."""
        return f"{self.name} {self.words}"


def unused(
    options: Options, drafters: Sequence[str], parts: Mapping[str, Part], learns: bool
) -> list[Unused]:
    """drafters: who drafts. parts: what the bundle has for that, that of `drafter_bundle` included. learns: whether a
    draft model does."""
    from paceline.runtime.drafters.names import stays_behind

    kinds, asked = {part.kind for part in parts.values()}, ", ".join(drafters)
    branching = "head" in kinds or any(part.streams for part in parts.values())
    plain = all(drafter == PLAIN for drafter in drafters)
    behind = [stays_behind(drafter, parts) for drafter in drafters]
    found = {
        ("suffix_store", ""): options.suffix_store is not None
        and not any(map(keeps_store, drafters))
        and f"is not used: only the drafter suffix keeps one, and this one is {asked}",
        ("drafter_bundle", ""): options.drafter_bundle is not None
        and not any(_guests(drafter, parts) for drafter in drafters)
        and f"is not used: {asked} runs no model of it",
        ("device_draft", ""): options.device_draft is not None
        and not kinds & {"decoder", "head"}
        and "is not used: this bundle has no draft model and no head",
        ("device_heads", ""): options.device_heads is not None
        and "head" not in kinds
        and "is not used: this bundle has no draft head",
        ("tree", options.tree): options.tree != "dynamic"
        and not branching
        and "is not used: this bundle has no draft head that could branch",
        ("draft_depth", ""): options.draft_depth is not None and plain and "is not used: none drafts nothing",
        ("max_nodes", ""): options.max_nodes is not None and plain and "is not used: none drafts nothing",
        ("mirror", "on"): options.mirror == "on"
        and all(behind)
        and f"takes a thread and is not used: {_each(drafters, behind)}",
        ("adapt", "on"): options.adapt == "on"
        and not learns
        and f"is not used: {asked} runs no draft model here that can learn ('paceline export BUNDLE OUT --adapt 8' "
        "makes them able to)",
    }
    return [Unused(name, value, words) for (name, value), words in found.items() if words]


def _each(names: Sequence[str], facts: Sequence[str | None]) -> str:
    """What holds of each, where it holds of several once."""
    of = {fact: [name for name, own in zip(names, facts, strict=True) if own == fact] for fact in facts}
    return "; ".join(f"{', '.join(those)} {fact}" for fact, those in of.items())


def _guests(drafter: str, parts: Mapping[str, Part]) -> bool:
    """Whether it runs a model of another bundle, whose files lie beside those of the bundle."""
    from paceline.runtime.drafters.names import parse

    name = parse(drafter, parts)
    return any(parts[model].graph.startswith("../") for model in (parts if name.auto else name.models))

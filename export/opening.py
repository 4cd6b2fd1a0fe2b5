"""What is made of a bundle is opened as its user will open it, every part over every cache, before it appears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paceline.export.errors import ExportError
from paceline.memory.cache import CacheFormat
from paceline.runtime.adaptation.contract import step_contract
from paceline.runtime.buckets import static_name
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError, Manifest, Part
from paceline.runtime.model.contract import Shapes, contract, draft_contract, static_contract, tree_contract
from paceline.runtime.model.device import find_device
from paceline.runtime.model.first_half import early_contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.part import first_layers, tree_shape
from paceline.runtime.split import halves

Said = tuple[str, Part, tuple[Shapes, Shapes]]
"""The path of a graph, the part that it is opened as, and its inputs and outputs."""


def check_opens(work: Path, old: Manifest) -> None:
    """Raise ExportError unless the bundle in this folder is whole, and all that is not as in the old one opens."""
    try:
        manifest = open_bundle(work).manifest
        for part in _new_parts(manifest, old):
            for path, opened, said in _graphs(part, manifest.target):
                graph = Graph(work / path, find_device("cpu"), 1, opened)
                graph.check(*said)
                graph.close()
    except BundleError as error:
        why = str(error).replace(f"{work}/", "")
        raise ExportError(
            f"what would come of this does not open, so nothing was written: {why}; take a bundle that nothing was "
            "added to yet"
        ) from None


def _new_parts(new: Manifest, old: Manifest) -> list[Part]:
    """Those that are not as before, and all that draft with the layers of a target that is not."""
    found = [] if new.target == old.target else [new.target]
    for name, part in new.drafters.items():
        if part != old.drafters.get(name) or (found and (part.borrows or part.exits)):
            found.append(part)
    return found


def _graphs(part: Part, target: Part) -> Iterator[Said]:
    forms: tuple[CacheFormat, ...] = ("fp32", *part.caches)
    for form in forms:
        yield part.graph_for(form), part, contract(part, form)
        for levels in part.drafts:
            yield part.draft_for(levels, form), part, draft_contract(part, form, levels)
        for shape in part.trees:
            yield part.tree_for(shape, form), part, tree_contract(part, form, *tree_shape(shape))
    for layer in part.exits:
        yield from _graphs(first_layers(target, part, layer), target)
    if part.split is not None:
        first, rest = halves(part)
        for form in forms:
            yield first.graph_for(form), first, early_contract(part, form)
            yield rest.graph_for(form), rest, contract(rest, form)
    if part.training is not None:
        yield part.training, part, step_contract(part)
    yield from _static(part)


def _static(part: Part) -> Iterator[Said]:
    if (sizes := part.static) is None:
        return
    for context in sizes.contexts:
        for rows, prompt in [*((rows, False) for rows in sizes.rows), (sizes.prompt, True)]:
            path = part.beside(static_name(rows, context, prompt))
            yield path, part, static_contract(part, rows, context, prompt)

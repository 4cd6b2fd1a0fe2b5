"""Graphs of a small draft model that draft several tokens in one call: written, checked, added to older bundles."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from paceline.export.caches import write_cached_graphs
from paceline.export.check import EXACT, ROUNDED_ACTIVATIONS, check_agreement, compare, open_part
from paceline.export.errors import ExportError
from paceline.export.unroll import unrolled
from paceline.export.weights import draft_name
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.constants import follow_constants
from paceline.runtime.bundle.survey import survey
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.bundle.wire import WireError
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.unrolled import Unrolled

DEPTHS = (2, 4, 8)
"""Levels of a call; any other number is made of these and of single passes."""
MOST_LAYERS = 1
"""Every layer attends from all rows of the call again, and joins and cuts them: two cost more than a call saves."""
_PLACES, _APART = 3, 7
_NOISE = 3.0


def write_drafts(graph: ir.Model, file: Path, layers: int) -> dict[int, str]:
    """Write the graphs that draft, for every form of the cache, beside `file`, the finished graph of a draft model.

    All read its weights. Returns their names by levels, for a cache of fp32; none where a call would save nothing, or
    where a loader would refuse what a graph makes of a large table at every level.
    """
    names: dict[int, str] = {}
    if layers > MOST_LAYERS:
        return names
    for depth in DEPTHS:
        made = unrolled(graph, depth)
        if made is None:
            break
        raw = ir.to_proto(made).SerializeToString()
        try:
            follow_constants(survey(raw))
        except WireError:
            break
        names[depth] = draft_name(depth)
        path = file.with_name(names[depth])
        write_atomically(path, raw, private=False)
        write_cached_graphs(made, path)
    return names


def with_drafts(part: Part, graph: ir.Model, folder: Path) -> tuple[Part, int]:
    """Give a draft model, which lies in the folder of a bundle, its graphs that draft; and their bytes."""
    place = Path(part.graph).parent.as_posix()
    names = write_drafts(graph, folder / part.graph, part.layers)
    made = msgspec.structs.replace(part, drafts={depth: f"{place}/{name}" for depth, name in names.items()})
    new = set(made.graphs) - set(part.graphs)
    return made, sum((folder / path).stat().st_size for path in new)


def check_drafts(name: str, folder: Path, part: Part) -> None:
    """Draft with every graph, and compare with the model itself, token for token. Raises ExportError."""
    rng = np.random.default_rng(0)
    forms: tuple[CacheFormat, ...] = ("fp32", *part.caches)
    for form in forms if part.drafts else ():
        deepest = max(part.drafts)
        context = min(part.context, _PLACES * _APART + deepest + 2)
        model = open_part(folder, part, context, 1, cache=form)
        drafting = Unrolled(model, partial(_opened, folder, part, form))
        text = rng.integers(0, part.vocab, context).tolist()
        got, meant = [], []
        for levels in part.drafts:
            for place in range(_APART, context - deepest - 1, _APART):
                drafting.noise[:] = _NOISE * rng.standard_normal(drafting.noise.shape, np.float32)
                for count in (1, 2):
                    model.rewind(0)
                    model.prefill(text[:place])
                    unread = text[place : place + count]
                    tokens, logits = drafting.draft(unread, levels)
                    if not np.array_equal(tokens, (logits + drafting.noise[:levels]).argmax(axis=1)):
                        raise ExportError(
                            f"{name}: {draft_name(levels)} does not choose the best tokens; nothing was written"
                        )
                    got.append(logits.copy())
                    model.rewind(place)
                    meant.append(model.extend(unread).copy())
                    for token in tokens[:-1].tolist():
                        meant.append(model.extend([token]).copy())
        limits = EXACT if part.quant == "none" else ROUNDED_ACTIVATIONS
        by = f"several levels at once over a cache of {form}"
        check_agreement(name, compare(np.concatenate(got), np.stack(meant)), limits, by, "single passes")
        drafting.close()
        model.close()
        gc.collect()


def _opened(folder: Path, part: Part, form: CacheFormat, depth: int) -> Graph:
    return Graph(folder / part.draft_for(depth, form), find_device("cpu"), threads=0, part=part)

"""A written head against the same head in numpy, on hidden states of the very target that it will draft for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.export.check import (
    EXACT,
    ROUNDED_ACTIVATIONS,
    Agreement,
    check_agreement,
    compare,
    open_part,
    ways_to_run,
)
from paceline.export.errors import ExportError
from paceline.export.exact_graph import write_exact_graph
from paceline.export.heads.block_reference import reference_of
from paceline.export.heads.head import Head
from paceline.export.heads.parts import Written
from paceline.export.heads.reference import Reference
from paceline.export.heads.stored import Stored
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats
from paceline.export.weights import draft_name
from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph

_MOST = 128
"""Tokens of the text."""
_PLACES = 4
"""Of the text from which drafts of every depth are compared."""
_TOGETHER = 16
"""Places whose logits are held at once."""
_NOISE = 0.5
"""Of the standard normal law that is added to the logits of every second draft."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text as a head sees it: token i + 1 beside the hidden states of row i."""

    tokens: Sequence[int]
    features: Floats


def lesson_of(folder: Path, target: Part, taps: Sequence[str], ids: Sequence[int]) -> Lesson:
    """Run a text (token ids) through the target of a bundle whose folder is given."""
    count = min(len(ids), _MOST, target.context)
    tokens = [min(int(token), target.vocab - 1) for token in ids[:count]]
    model = open_part(folder, target, count, count)
    model.prepare(count)
    rows = model.prefill(tokens[:-1]).extras
    return Lesson(tokens[1:], np.concatenate([rows[tap] for tap in taps], axis=1))


def check_head(
    title: str, folder: Path, part: Part, head: Head, stored: Stored, written: Written, lesson: Lesson
) -> tuple[Agreement, tuple[float, ...]]:
    """Compare all graphs with numpy. Raises ExportError.

    Without rounding of activations they must agree strictly with the weights that are stored, by their function bodies
    and by our kernels; as they will run, up to the rounding, and over narrow caches. Returns the first agreement, and
    for each depth the share of places where the graph chooses as the head with its own, unrounded weights does.
    """
    place = folder / Path(part.graph).parent
    ours = reference_of(head, stored.meant)
    ways = ways_to_run(part.layout is not None)
    exact = {name: write_exact_graph(model, place / name) for name, model in written.graphs.items()}
    for native in ways:
        by = "by our kernels" if native else "by ONNX Runtime's operators"
        run = _Run(folder, part, native=native, files=exact)
        agreement = _agreement(title, run, head, ours, lesson)
        check_agreement(title, agreement, EXACT, by, "numpy")
    for name in exact.values():
        (place / name).unlink()
    limits = EXACT if part.quant == "none" else ROUNDED_ACTIVATIONS
    run = _Run(folder, part, native=ways[-1])
    check_agreement(
        title, _agreement(title, run, head, ours, lesson), limits, "with activations of 8 bits", "numpy"
    )
    kept = _kept(run, head, lesson)
    for form in part.caches:
        narrow = _Run(folder, part, native=ways[-1], form=form)
        found = _agreement(title, narrow, head, ours, lesson)
        check_agreement(title, found, limits.over(form), f"over a cache of {form}", "numpy")
    return agreement, kept


class _Run:
    """The graphs of a head over a cache of their own. files: others in their place, by name."""

    def __init__(
        self,
        folder: Path,
        part: Part,
        *,
        native: bool,
        form: CacheFormat = "fp32",
        files: dict[str, str] | None = None,
    ) -> None:
        self._folder, self._part, self._native, self._form = folder, part, native, form
        self._files, self._graphs = files or {}, dict[str, Graph]()
        self._cache = KeyValueCache(part.layers, part.kv_heads, _MOST, part.head_dim, form)

    def read(self, tokens: Sequence[int], features: Floats, past: int) -> Floats:
        """States of pairs behind the first `past` ones, float32[T, H]."""
        count = len(tokens)
        feeds: dict[str, Any] = {
            "token_ids": np.array(tokens, np.int64),
            "features": features,
            "rows": np.arange(count),
            "positions": np.arange(past, past + count),
            "tree_mask": np.tri(count, dtype=np.bool_),
            "past_len": np.array([past]),
        }
        state, *new = self._run(self._part.graph_for(self._form), feeds)
        if new:
            self._cache.write(past, np.stack([*new[::2], *new[1::2]]), slice(None))  # keys, then values
        found: Floats = state
        return found

    def draft(self, depth: int, state: Floats, past: int, noise: Floats, root: int) -> tuple[Ids, Floats]:
        """Tokens [D] and scores [D, Vd] of a draft from a state [H] after `past` pairs, the last of `root`."""
        feeds = {
            "state": state[None],
            "token": np.array([root]),
            "noise": noise,
            "past_len": np.array([past]),
        }
        tokens, scores = self._run(self._part.draft_for(depth, self._form), feeds)
        return tokens, scores

    def _run(self, path: str, feeds: dict[str, Any]) -> list[Any]:
        if path not in self._graphs:
            file = self._folder / path
            file = file.with_name(self._files.get(file.name, file.name))
            self._graphs[path] = Graph(file, find_device("cpu"), 0, self._part, kernels=self._native)
        graph = self._graphs[path]
        given = {**feeds, **self._cache.inputs()}
        found: list[Any] = graph.session.run(None, {name: given[name] for name in graph.inputs})
        return found


def _agreement(title: str, run: _Run, head: Head, reference: Reference, lesson: Lesson) -> Agreement:
    """All states, and scores of drafts of every depth from a few places; the worst of both."""
    count, half = len(lesson.tokens), len(lesson.tokens) // 2
    meant, past = reference.read(lesson.tokens, lesson.features)
    states = np.concatenate(
        [
            run.read(lesson.tokens[:half], lesson.features[:half], 0),
            run.read(lesson.tokens[half:], lesson.features[half:], half),
        ]
    )
    rng = np.random.default_rng(0)
    got, expected, roots = [], [], np.array(lesson.tokens)
    for number, place in enumerate(np.linspace(0, count - 1, _PLACES).astype(int).tolist()):
        for depth in head.config.depths:
            noise = np.zeros((depth, head.config.vocab), np.float32)
            if number % 2:
                noise += _NOISE * rng.standard_normal(noise.shape, np.float32)
            tokens, scores = run.draft(depth, states[place], place + 1, noise, lesson.tokens[place])
            if not np.array_equal(tokens, head.vocabulary[scores.argmax(axis=1)]):
                raise ExportError(
                    f"{title}: {draft_name(depth)} does not choose the best tokens: nothing was written"
                )
            got.append(scores)
            logits = reference.draft(meant[place][None], past, [place + 1], tokens[None], roots[place][None])
            expected.append(logits[0] + noise)
    found = compare(states, meant), compare(np.concatenate(got), np.concatenate(expected))
    return Agreement(
        sum(one.rows for one in found),
        max(one.largest for one in found),
        max(one.relative for one in found),
        max(one.spread for one in found),
        found[1].top1,
    )


def _kept(run: _Run, head: Head, lesson: Lesson) -> tuple[float, ...]:
    """For each depth the share of places where a graph, its cache filled, chooses as the unrounded head does."""
    reference, depth = reference_of(head), head.config.depths[-1]
    meant, past = reference.read(lesson.tokens, lesson.features)
    states = run.read(lesson.tokens, lesson.features, 0)
    noise = np.zeros((depth, head.config.vocab), np.float32)
    places = range(len(lesson.tokens))
    drafts = np.stack(
        [run.draft(depth, states[place], place + 1, noise, lesson.tokens[place])[0] for place in places]
    )
    same, roots = np.zeros(depth), np.array(lesson.tokens)
    for at in range(0, len(places), _TOGETHER):
        some = places[at : at + _TOGETHER]
        logits = reference.draft(meant[some], past, [place + 1 for place in some], drafts[some], roots[some])
        same += (head.vocabulary[logits.argmax(axis=2)] == drafts[some]).sum(axis=0)
    return tuple((same / len(places)).tolist())

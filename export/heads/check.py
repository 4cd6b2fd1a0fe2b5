"""A written head against the same head in numpy, on hidden states of the very target that it will draft for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

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
from paceline.export.exact_graph import exactly
from paceline.export.heads.head import Head
from paceline.export.heads.parts import Written, tree_name
from paceline.export.heads.reference import Reference
from paceline.export.heads.references import reference_of
from paceline.export.heads.stored import Stored
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats
from paceline.export.weights import draft_name
from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.part import tree_shape

_MOST = 128
"""Tokens of the text."""
_PLACES = 4
"""Of the text from which drafts of every depth are compared."""
_TOGETHER = 16
"""Places whose logits are held at once."""
_SCALE = 1.4
"""How sharp the laws of drafted trees are."""
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
    ours = reference_of(head, stored.meant)
    ways = ways_to_run(part.layout is not None)
    exact = {name: ir.to_proto(exactly(model)).SerializeToString() for name, model in written.graphs.items()}
    for native in ways:
        by = "by our kernels" if native else "by ONNX Runtime's operators"
        run = _Run(folder, part, native=native, instead=exact)
        agreement = _agreement(title, run, head, ours, lesson)
        check_agreement(title, agreement, EXACT, by, "numpy")
        if part.trees:
            grown = _trees_agreement(title, run, head, ours, lesson)
            check_agreement(f"{title}, trees", grown, EXACT, by, "numpy")
    limits = EXACT if part.quant == "none" else ROUNDED_ACTIVATIONS
    run = _Run(folder, part, native=ways[-1])
    check_agreement(
        title, _agreement(title, run, head, ours, lesson), limits, "with activations of 8 bits", "numpy"
    )
    _check_trees(title, run, head, lesson)
    kept = _kept(run, head, lesson)
    for form in part.caches:
        narrow = _Run(folder, part, native=ways[-1], form=form)
        found = _agreement(title, narrow, head, ours, lesson)
        check_agreement(title, found, limits.over(form), f"over a cache of {form}", "numpy")
        _check_trees(title, narrow, head, lesson)
    return agreement, kept


class Tree(NamedTuple):
    """A drafted tree, as `tree_contract` says."""

    tokens: Ids
    chances: Floats
    parents: Ids
    scores: Floats


class _Run:
    """The graphs of a head over a cache of their own. instead: others in the place of those in a file, by its name."""

    def __init__(
        self,
        folder: Path,
        part: Part,
        *,
        native: bool,
        form: CacheFormat = "fp32",
        instead: dict[str, bytes] | None = None,
    ) -> None:
        self._folder, self._part, self._native, self._form = folder, part, native, form
        self._instead, self._graphs = instead or {}, dict[str, Graph]()
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

    def tree(self, name: str, state: Floats, root: int, past: int, noise: Floats, scale: float) -> Tree:
        """What a graph that drafts a tree makes of a state [H] and a root after `past` pairs."""
        feeds = {
            "state": state[None],
            "token": np.array([root]),
            "noise": noise,
            "past_len": np.array([past]),
            "scale": np.array([scale], np.float32),
        }
        return Tree(*self._run(self._part.tree_for(name, self._form), feeds))

    @property
    def trees(self) -> list[tuple[str, int, int]]:
        """The trees that there are graphs for: name, levels and parents a level."""
        return [(name, *tree_shape(name)) for name in self._part.trees]

    def _run(self, path: str, feeds: dict[str, Any]) -> list[Any]:
        if path not in self._graphs:
            file = self._folder / path
            raw = self._instead.get(file.name)
            self._graphs[path] = Graph(file, find_device("cpu"), 0, self._part, self._native, raw)
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
    if not got:  # what it reads it says at once
        return compare(states, meant)
    found = compare(states, meant), compare(np.concatenate(got), np.concatenate(expected))
    return Agreement(
        sum(one.rows for one in found),
        max(one.largest for one in found),
        max(one.relative for one in found),
        max(one.spread for one in found),
        found[1].top1,
    )


def _trees_agreement(title: str, run: _Run, head: Head, reference: Reference, lesson: Lesson) -> Agreement:
    """The chances of all children of trees of every shape: of the tokens that were chosen, and of the best ones.

    Raises ExportError where others go on than the best.
    """
    meant, past = reference.read(lesson.tokens, lesson.features)
    got, expected = list[Floats](), list[Floats]()
    for place, found, noise, paths in _trees(title, run, head, lesson):
        begin = 0
        for level, path in enumerate(paths):
            count = len(path)
            followed = np.concatenate([path, np.zeros((count, 1), np.int64)], axis=1)
            start = np.repeat(meant[place : place + 1], count, axis=0)
            roots = np.repeat(lesson.tokens[place], count)
            logits = reference.draft(start, past, [place + 1] * count, followed, roots)[:, level]
            law = _log_softmax(_SCALE * (logits + noise[level]))
            rows = slice(begin, begin + count)
            columns = np.searchsorted(head.vocabulary, found.tokens[rows])
            best = -np.sort(-law, axis=1)[:, : found.tokens.shape[1]]
            expected += [np.take_along_axis(law, columns, axis=1), best]
            got += [found.chances[rows]] * 2
            begin += count
    return compare(np.concatenate(got), np.concatenate(expected))


def _check_trees(title: str, run: _Run, head: Head, lesson: Lesson) -> None:
    """That trees are no nonsense where they round: their parents are the best by their own chances."""
    for _, found, _, _ in _trees(title, run, head, lesson):
        if not np.isfinite(found.chances).all():
            raise ExportError(f"{title}: a tree has chances that are no numbers: nothing was written")


def _trees(
    title: str, run: _Run, head: Head, lesson: Lesson
) -> Iterator[tuple[int, Tree, Floats, list[Ids]]]:
    """Trees of every shape from two places, one of them with noise: the place, the tree, the noise, and for each level
    the tokens that lead to its parents."""
    states = run.read(lesson.tokens, lesson.features, 0) if run.trees else lesson.features
    rng = np.random.default_rng(1)
    for number, place in enumerate((len(lesson.tokens) // 2, len(lesson.tokens) - 1)):
        for name, depth, width in run.trees:
            noise = np.zeros((depth, head.config.vocab), np.float32)
            if number:
                noise += _NOISE * rng.standard_normal(noise.shape, np.float32)
            found = run.tree(name, states[place], lesson.tokens[place], place + 1, noise, _SCALE)
            yield place, found, noise, _paths(title, found, depth, width)


def _paths(title: str, found: Tree, depth: int, width: int) -> list[Ids]:
    """For each level the tokens that lead to its parents, [W, level]. Raises ExportError where others are better."""
    paths, sums, rows = [np.zeros((1, 0), np.int64)], found.chances[:1], found.tokens[:1]
    for level in range(depth - 1):
        places = found.parents[level * width : (level + 1) * width]
        flat, least = sums.ravel(), np.partition(sums.ravel(), -width)[-width]
        if len(set(places.tolist())) < width or not (flat[places] >= least - 1e-5).all():
            raise ExportError(
                f"{title}: {tree_name(depth, width)} does not go on from the best: nothing was written"
            )
        before = paths[-1][places // rows.shape[1]]
        paths.append(np.concatenate([before, rows.ravel()[places][:, None]], axis=1))
        begin = 1 + level * width
        rows = found.tokens[begin : begin + width]
        sums = found.chances[begin : begin + width] + flat[places][:, None]
    return paths


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _kept(run: _Run, head: Head, lesson: Lesson) -> tuple[float, ...]:
    """For each depth the share of places where a graph, its cache filled, chooses as the unrounded head does."""
    reference = reference_of(head)
    meant, past = reference.read(lesson.tokens, lesson.features)
    states = run.read(lesson.tokens, lesson.features, 0)
    if not head.config.depths:
        return (float((states.argmax(axis=1) == meant.argmax(axis=1)).mean()),)
    depth = head.config.depths[-1]
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

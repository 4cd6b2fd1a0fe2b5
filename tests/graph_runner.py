"""Runs a graph that follows the graph contract, with a cache, and asks torch the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from paceline.export.capture import capture
from paceline.export.facts import facts
from paceline.export.mixing import Choose
from paceline.export.passes import simplify
from paceline.export.reference import eager
from paceline.export.report import Facts
from paceline.export.source import Loaded, load_model
from paceline.export.storage import Storage, store
from paceline.runtime.model.rope import frequencies, reach, step_of
from paceline.runtime.ops import library

CAPACITY = 40


@dataclass
class Runner:
    """A captured model, its session and its cache."""

    loaded: Loaded
    facts: Facts
    graph: ir.Model
    session: ort.InferenceSession
    context: int
    cache: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def reset(self) -> None:
        """Garbage, not zeros: rows past the length may hold anything."""
        shape = (self.facts.kv_heads, CAPACITY, self.facts.head_dim)
        for i in range(self.facts.layers):
            for part in ("cache_k", "cache_v"):
                self.cache[f"{part}.{i}"] = np.full(shape, 1e4, np.float32)

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: NDArray[np.bool_],
        past: int,
        rows: Sequence[int] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        feed = {
            "token_ids": np.asarray(tokens, np.int64),
            "positions": np.asarray(positions, np.int64),
            "tree_mask": mask,
            "past_len": np.array([past], np.int64),
            "rows": np.asarray(range(len(tokens)) if rows is None else rows, np.int64),
            **self.cache,
        }
        if self.facts.rope is not None:
            rope = self.facts.rope
            length = reach(rope, step_of(rope, self.context), self.facts.context)
            feed["inv_freq"], scale = frequencies(rope, length)
            feed["rope_scale"] = np.array([scale], np.float32)
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, feed), strict=True))

    def store(self, out: dict[str, NDArray[np.float32]], at: int) -> None:
        """Write every new row into the cache from slot `at`."""
        for i in range(self.facts.layers):
            for part in ("k", "v"):
                new = out[f"new_{part}.{i}"]
                self.cache[f"cache_{part}.{i}"][:, at : at + new.shape[1]] = new

    def prefill(self, tokens: Sequence[int], past: int = 0) -> NDArray[np.float32]:
        """Run a chain, keep its rows, return its logits."""
        mask = np.tril(np.ones((len(tokens), len(tokens)), bool))
        out = self.run(tokens, range(past, past + len(tokens)), mask, past)
        self.store(out, past)
        return out["logits"]

    def torch_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        with torch.no_grad(), eager(self.loaded, self.facts.rope, self.context) as model:
            logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return logits.numpy()

    def torch_hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        with torch.no_grad(), eager(self.loaded, self.facts.rope, self.context) as model:
            hidden = model.base_model(input_ids=torch.tensor([list(tokens)]), use_cache=False)[0][0]
        return hidden.numpy()


def make_runner(folder: Path, taps: Sequence[str] = (), context: int | None = None) -> Runner:
    loaded = load_model(str(folder))
    known = facts(loaded)
    graph = capture(loaded, taps)
    return _runner(
        Runner(loaded, known, graph, _session(graph, folder / "graph.onnx"), context or known.context)
    )


def stored_runner(
    captured: Runner,
    storage: Storage,
    folder: Path,
    *,
    kernels: bool = False,
    choose: Choose | None = None,
) -> Runner:
    """The same model in the form in which a bundle stores it, run by function bodies or by our kernels."""
    graph = captured.graph.clone()
    simplify(graph)
    store(graph, captured.loaded.dtype, storage, lambda *_: None, choose)
    session = _session(graph, folder / "graph.onnx", kernels=kernels)
    return _runner(Runner(captured.loaded, captured.facts, graph, session, captured.context))


def _runner(runner: Runner) -> Runner:
    runner.reset()
    return runner


def _session(graph: ir.Model, path: Path, *, kernels: bool = False) -> ort.InferenceSession:
    ir.save(graph, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if kernels:
        library.register(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def path(parents: Sequence[int], node: int) -> list[int]:
    """Nodes from the root to `node`."""
    found = []
    while node >= 0:
        found.append(node)
        node = parents[node]
    return found[::-1]


def tree_mask(parents: Sequence[int]) -> NDArray[np.bool_]:
    mask = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def random_tree(rng: np.random.Generator, nodes: int, depth: int) -> list[int]:
    """Parents of a random tree, root first, level by level."""
    parents, depths = [-1], [0]
    while len(parents) < nodes:
        parent = int(rng.choice([n for n, d in enumerate(depths) if d < depth]))
        parents.append(parent)
        depths.append(depths[parent] + 1)
    order = sorted(range(nodes), key=lambda n: (depths[n], n))
    place = {node: i for i, node in enumerate(order)}
    return [-1 if parents[n] < 0 else place[parents[n]] for n in order]

"""Law 9 with the native kernels: a row of a target pass has the same bits in every pass that holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from small_checkpoints import write_checkpoint

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.loading import load
from paceline.runtime.model.model import Model
from paceline.runtime.ops.library import available
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(not available(), reason="the native kernels were not built here"),
]
PROMPT = [int(t) for t in np.random.default_rng(3).integers(2, 256, 70)]
WIDTHS = (2, 3, 4, 5, 7, 8, 9, 13, 14, 16, 17, 26, 27, 32, 33, 48, 63, 64)


@pytest.fixture(scope="module", params=["none", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(str(request.param))
    source = write_checkpoint(folder / "model", max_position_embeddings=256, hidden_size=96)
    export_bundle(Order(str(source), quant=request.param, calibrate=False), folder / "bundle")
    return folder / "bundle"


def opened(bundle: Path, threads: int = 1, cache: str | None = None) -> Session:
    return load(bundle, drafter="none", threads=threads, max_nodes=64, cache=cache)


def random_tree(nodes: int, seed: int) -> TokenTree:
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(max(0, i - 6), i)) for i in range(1, nodes))]
    return TokenTree.picked(rng.integers(2, 256, nodes).tolist(), parents, ("",) * nodes)


def alone(target: Model, tree: TokenTree, node: int) -> np.ndarray:
    """The logits of a node when its ancestors were committed one by one."""
    start = target.length
    path = tree.path(node)
    for before in path[:-1]:
        target.score(TokenTree.root(int(tree.tokens[before])))
        target.commit((0,))
    row = target.score(TokenTree.root(int(tree.tokens[path[-1]]))).logits[0].copy()
    target.rewind(start)
    return row


@pytest.mark.parametrize("nodes", WIDTHS)
def test_every_row_of_a_tree_has_the_bits_of_its_path_decoded_plainly(bundle: Path, nodes: int) -> None:
    target = opened(bundle)._target
    target.prefill(PROMPT)
    tree = random_tree(nodes, nodes)
    together = target.score(tree).logits.copy()
    # Every row is compared at small widths, and each third at large ones, the last row always.
    for node in sorted({*range(0, nodes, 1 if nodes < 20 else 3), nodes - 1}):
        assert np.array_equal(together[node], alone(target, tree, node)), f"row {node} of {nodes}"


@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
def test_rows_have_the_same_bits_over_every_form_of_the_cache(bundle: Path, cache: str) -> None:
    target = opened(bundle, cache=cache)._target
    tree = random_tree(21, 4)
    for chunk in (70, 1, 9):
        target.rewind(0)
        for at in range(0, len(PROMPT), chunk):
            target.prefill(PROMPT[at : at + chunk])
        together = target.score(tree).logits.copy()
        for node in (0, 7, 20):
            assert np.array_equal(together[node], alone(target, tree, node)), (chunk, node)


def test_the_width_of_a_prompt_chunk_and_the_threads_change_no_bit(bundle: Path) -> None:
    rows = []
    for threads in (1, 2):
        for chunk in (1, 2, 5, 16, 64, 70):
            target = opened(bundle, threads)._target
            for at in range(0, len(PROMPT), chunk):
                target.prefill(PROMPT[at : at + chunk])
            rows.append(target.score(random_tree(9, 1)).logits.copy())
    assert all(np.array_equal(rows[0], row) for row in rows[1:])


def test_control_another_committed_row_shows(bundle: Path) -> None:
    target = opened(bundle)._target
    target.prefill(PROMPT)
    before = target.score(TokenTree.root(5)).logits.copy()
    target.cache.stack[0, 0, 10] += 0.5
    assert not np.array_equal(before, target.score(TokenTree.root(5)).logits)

"""A graph runs with the native library or without it, and reads its weights where they are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound
from paceline.runtime.model.weights import huge_pages
from paceline.runtime.ops import library
from paceline.runtime.tree import TokenTree

needs_kernels = pytest.mark.skipif(library.handle() is None, reason="no native library was built")
CPU = find_device("cpu")
TEXT = list(range(20, 60))


@pytest.mark.parametrize("name", ["target", "small"])
def test_with_and_without_the_library_a_model_computes_nearly_the_same(name: str) -> None:
    bundle = open_bundle(embedded_bundle())
    part = bundle.manifest.target if name == "target" else bundle.manifest.drafters[name]
    tree = TokenTree.chain([5, 6, 7, 8], "test")
    found = []
    for kernels in (True, False):
        graph = Graph(bundle.path(part.graph), CPU, 1, part, kernels=kernels)
        assert graph.native == (kernels and library.available())
        model = Model(graph, part, 128, widest=8)
        model.prefill(TEXT)
        found.append(model.score(tree).logits.copy())
    assert np.abs(found[0] - found[1]).max() < 1e-4 * np.abs(found[0]).max()


@pytest.fixture
def product(tmp_path: Path) -> tuple[Path, Part]:
    """A graph that is one packed product."""
    from external_graph import write_graph
    from onnx import TensorProto, helper
    from packed_products import Format, random_matrix

    matrix = random_matrix(np.random.default_rng(0), 256, 1024, Format(4, 32))
    node = helper.make_node(
        "QMatMul", ["x", "weights", "scales"], ["y"], domain="paceline", **matrix.attributes()
    )
    path = tmp_path / "model.onnx"
    listed = write_graph(path, node, {"x": TensorProto.FLOAT}, matrix.constants())
    part = open_bundle(embedded_bundle()).manifest.target
    return path, msgspec.structs.replace(part, layout=1, weights=listed)


def run(graph: Graph) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)
    y = np.zeros((3, 1024), np.float32)
    Bound(graph, {"x": x}, {"y": y}).run()
    return y


@pytest.mark.export
@needs_kernels
def test_listed_weights_give_the_bits_of_weights_that_onnx_runtime_reads(product: tuple[Path, Part]) -> None:
    path, part = product
    unlisted = msgspec.structs.replace(part, weights={})
    mapped, listed = Graph(path, CPU, 1, unlisted), Graph(path, CPU, 1, part)
    assert mapped.weights is None
    y = run(listed)
    assert y.any()
    assert (run(mapped) == y).all()


@pytest.mark.export
@needs_kernels
@pytest.mark.skipif(not huge_pages(), reason="this system gives no huge pages")
def test_sessions_over_one_file_share_one_buffer(product: tuple[Path, Part]) -> None:
    path, part = product
    first, second = Graph(path, CPU, 1, part), Graph(path, CPU, 2, part)
    assert first.weights is not None
    assert first.weights is second.weights
    wanted = run(first)
    del first
    assert (run(second) == wanted).all()


def test_without_the_library_no_buffer_is_made() -> None:
    bundle = open_bundle(embedded_bundle())
    part = bundle.manifest.target
    assert part.weights
    assert Graph(bundle.path(part.graph), CPU, 1, part, kernels=False).weights is None

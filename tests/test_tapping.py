"""Taps for a finished graph: they are those that the exporter captures, and nothing else of the graph changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnx_ir as ir
from command_line import BUNDLE, call
from family_models import FAMILIES, write_family
from graph_runner import Runner, _session, make_runner, stored_runner
from small_checkpoints import write_checkpoint

from paceline.export.check import part_logits
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.storage import Storage
from paceline.export.tapping import tap_graph
from paceline.runtime.manifest import Part, read_manifest
from paceline.runtime.ops import library

pytestmark = pytest.mark.export

FAST = ("gemma2", "int8")
PROMPT = [5, 9, 30, 2, 77, 14, 51]
STORAGES = {
    "floats": Storage("none"),
    "int8": Storage("int8", block=32),
    "portable": Storage("int4", block=32, profile="portable"),
}
LOST = {"cohere": {"hidden.1"}}
"""Its norms are several nodes: where the last one begins cannot be told."""


def part_of(runner: Runner) -> Part:
    known = runner.facts
    said = read_manifest(BUNDLE).target
    return Part(
        **{name: getattr(said, name) for name in said.__struct_fields__}
        | {"layers": known.layers, "hidden": known.hidden}
    )


def said(runner: Runner) -> dict[str, np.ndarray]:
    runner.reset()
    mask = np.tril(np.ones((len(PROMPT),) * 2, bool))
    return runner.run(PROMPT, range(len(PROMPT)), mask, 0, rows=[1, 6])


@pytest.mark.parametrize(
    ("name", "title"),
    [
        pytest.param(name, title, marks=[] if (name, title) == FAST else [pytest.mark.slow])
        for name in FAMILIES
        for title in STORAGES
    ],
)
def test_a_finished_graph_gives_the_hidden_states_that_are_captured(
    name: str, title: str, tmp_path: Path
) -> None:
    """Of rows without logits too, bit for bit. With LayerNorm logits are those of the graph captured with taps."""
    folder = write_family(name, tmp_path / "model")
    bare = make_runner(folder)
    taps = [*(f"hidden.{i}" for i in range(bare.facts.layers)), "hidden"]
    full, given = make_runner(folder, taps), [tap for tap in taps if tap not in LOST.get(name, ())]
    for kernels in [False, True] if library.available() else [False]:
        meant = said(stored_runner(full, STORAGES[title], tmp_path, kernels=kernels))
        plain = stored_runner(bare, STORAGES[title], tmp_path, kernels=kernels)
        before, graph = said(plain), plain.graph.graph
        for tap in taps:
            assert (tap_graph(graph, part_of(plain), tap) is None) == (tap in given), tap
        plain.session = _session(plain.graph, tmp_path / "tapped.onnx", kernels=kernels)
        after = said(plain)
        assert list(after) == ["logits", *given, *list(before)[1:]]
        joined = any(node.op_type == "LayerNormalization" for node in graph)
        for out, value in before.items():
            assert np.array_equal(after[out], meant[out] if joined else value), (out, kernels)
            assert np.abs(after[out] - value).max() <= 1e-5 * np.abs(value).max()
        for tap in given:
            assert np.array_equal(after[tap], meant[tap]), (tap, kernels)


def test_a_layer_that_is_not_found_is_named() -> None:
    graph = ir.load(BUNDLE / "target/model.onnx").graph
    part = read_manifest(BUNDLE).target
    attention = next(node for node in graph if "cache_k.3" in [v.name for v in node.inputs if v is not None])
    attention.op_type = "Attention"
    outputs = [value.name for value in graph.outputs]
    assert tap_graph(graph, part, "hidden.2") == "the end of layer 2 was not found"
    assert tap_graph(graph, part, "hidden.3") == "the end of layer 3 was not found"
    assert [value.name for value in graph.outputs] == outputs
    assert tap_graph(graph, part, "hidden.4") is None


def test_a_finished_bundle_gets_taps_and_stays_what_it_is(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in BUNDLE.rglob("*") if path.is_file()}
    done = call("export", BUNDLE, tmp_path / "out", "--taps", "hidden.2,hidden.7", "--taps", "hidden")
    assert done.code == 0, done.err
    assert "target: gives hidden.2, hidden.7, hidden" in done.out
    assert {path: path.read_bytes() for path in BUNDLE.rglob("*") if path.is_file()} == before
    old, new = (read_manifest(folder) for folder in (BUNDLE, tmp_path / "out"))
    assert new.target.taps == ["hidden.2", "hidden.7", "hidden"]
    data = [folder / old.target.data for folder in (BUNDLE, tmp_path / "out")]
    assert data[0].stat().st_dev != data[1].stat().st_dev or os.path.samefile(*data)
    for form in ("fp32", "fp16", "int8"):
        logits = [
            part_logits(folder, manifest.target, 64, form)(range(20, 70))  # type: ignore[arg-type]
            for folder, manifest in ((BUNDLE, old), (tmp_path / "out", new))
        ]
        assert np.array_equal(*logits)
    again = call("export", tmp_path / "out", tmp_path / "more", "--taps", "hidden.0,hidden", "-q")
    assert again.code == 0, again.err
    assert read_manifest(tmp_path / "more").target.taps == ["hidden.2", "hidden.7", "hidden", "hidden.0"]
    done = call("export", BUNDLE, tmp_path / "no", "--taps", "hidden.8")
    assert done.code == 1
    assert done.err == "paceline: error: no tap 'hidden.8': taps are 'hidden' and 'hidden.0' to 'hidden.7'\n"
    for wrong in ("foo", "hidden.-1", "hidden,"):
        done = call("export", BUNDLE, tmp_path / "no", "--taps", wrong)
        assert done.code == 1
        assert "taps are 'hidden' and 'hidden.0' to 'hidden.7'" in done.err
    assert "--quant cannot change a bundle" in call(
        "export", BUNDLE, tmp_path / "no", "--taps", "hidden", "--quant", "int8"
    ).err  # fmt: skip
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_bundle_whose_last_layer_is_not_found_is_refused_with_the_remedy(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", kind="cohere", use_qk_norm=False)
    export_bundle(Order(str(source)), tmp_path / "plain")
    done = call("export", tmp_path / "plain", tmp_path / "out", "--taps", "hidden.0,hidden.1", "-q")
    assert done.code == 1
    assert done.err == (
        "paceline: error: target/model.onnx: the end of layer 1 was not found: export the model that the bundle was "
        "made of again, with --taps hidden.0,hidden.1\n"
    )
    assert not (tmp_path / "out").exists()

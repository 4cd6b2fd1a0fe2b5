"""A head in a bundle: its graphs compute what the head computes, whatever rounds them and over whatever cache."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("transformers")

from small_checkpoints import write_checkpoint
from small_heads import TAPS, small_config, small_tensors, write_small_head

from paceline.export.errors import ExportError
from paceline.export.heads import layer
from paceline.export.heads.adding import add_heads
from paceline.export.heads.beam import Beam
from paceline.export.heads.check import lesson_of
from paceline.export.heads.checkpoint import read_head
from paceline.export.heads.config import TREES, Method
from paceline.export.heads.references import reference_of
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import MANIFEST, SCHEMA, BundleError, read_manifest

pytestmark = pytest.mark.export

FLOAT = ir.DataType.FLOAT
METHODS = tuple(get_args(Method))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle whose target gives taps."""
    base = tmp_path_factory.mktemp("target")
    source = write_checkpoint(base / "model")
    export_bundle(Order(str(source), taps=TAPS), base / "bundle")
    return base / "bundle"


def added(bundle: Path, place: Path, quant: Any = "none", **changes: Any) -> Any:
    """The report of a bundle with one random head, called `small`."""
    config = small_config(read_manifest(bundle).target, **changes)
    folder = write_small_head(place / "head", config)
    return add_heads(bundle, {"small": str(folder)}, place / "bundle", quant)


@pytest.mark.parametrize("method", METHODS)
def test_graphs_of_every_depth_compute_what_the_head_computes(
    bundle: Path, method: str, tmp_path: Path
) -> None:
    report = added(bundle, tmp_path, method=method)
    made = report.heads["small"]
    assert made.agreement.relative < 1e-5
    assert made.agreement.top1 == 1.0
    assert made.kept == (1.0,) * max(made.part.drafts, default=1)
    deep = [1, 2, 3, 4, 6, 8]
    chains = {"eagle": deep, "eagle3": deep, "falcon": deep, "dflash": [7], "kangaroo": []}
    assert list(made.part.drafts) == chains.get(method, [1, 2, 3, 4])
    opened = open_bundle(tmp_path / "bundle", reread=True)
    assert opened.manifest == report.manifest
    assert opened.manifest.drafters["small"].accepted == [0.5, 0.25]


@pytest.mark.parametrize("quant", [pytest.param("int8", marks=pytest.mark.slow), "int4"])
@pytest.mark.parametrize("method", METHODS)
def test_rounded_weights_are_what_is_computed_with(
    bundle: Path, method: str, quant: str, tmp_path: Path
) -> None:
    made = added(bundle, tmp_path, quant, method=method).heads["small"]
    assert made.agreement.relative < 1e-4
    assert 0 < made.matrix_error < (0.01 if quant == "int8" else 0.12)
    assert made.kept[0] > (0.9 if quant == "int8" else 0.5)
    assert made.part.quant == quant


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "eagle3", "tied": True},
        {"method": "hydra", "tied": True, "vocab": 320},
        {"method": "eagle3", "vocab": 320},
        {"method": "medusa", "vocab": 320, "taps": ["hidden"]},
        {"method": "eagle3", "taps": ["hidden.1"], "heads": 3, "kv_heads": 1, "depth": 5},
        {"method": "hydra", "vocab": 33, "depth": 1, "head_dim": 8},
        {"method": "dflash", "tied": True, "depth": 15, "layers": 3},
        {"method": "kangaroo", "vocab": 320, "heads": 3, "kv_heads": 1},
        {"method": "dflash", "vocab": 320, "taps": ["hidden"], "depth": 1, "layers": 1},
        {"method": "clover", "tied": True, "vocab": 320, "heads": 3, "kv_heads": 1},
        {"method": "clover", "vocab": 33, "depth": 1, "taps": ["hidden.1"]},
        {"method": "falcon", "tied": True, "vocab": 320, "depth": 5, "heads": 3, "kv_heads": 1},
        {"method": "falcon", "vocab": 33, "depth": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("quant", [pytest.param("none", marks=pytest.mark.slow), "int4"])
def test_so_do_those_of_other_shapes(
    bundle: Path, changes: dict[str, Any], quant: str, tmp_path: Path
) -> None:
    report = added(bundle, tmp_path, quant, **changes)
    part = report.heads["small"].part
    assert report.heads["small"].agreement.relative < 1e-4
    assert (part.vocabulary is None) == (part.vocab == 320)
    if changes.get("depth") == 5:
        assert list(part.drafts) == [1, 2, 3, 4, 5]
    open_bundle(tmp_path / "bundle", reread=True)


@pytest.mark.parametrize("method", ["hydra", "medusa", "clover"])
def test_levels_that_change_nothing_yet_are_carried(bundle: Path, method: str, tmp_path: Path) -> None:
    config = small_config(read_manifest(bundle).target, method, depth=2)
    zero = ".out.weight" if method == "hydra" else ".weight"
    tensors = {
        name: values * 0 if name.startswith(("levels.", "decoder.o")) and name.endswith(zero) else values
        for name, values in small_tensors(config).items()
    }
    folder = write_small_head(tmp_path / "head", config, tensors)
    report = add_heads(bundle, {"small": str(folder)}, tmp_path / "bundle", "int4")
    assert report.heads["small"].agreement.relative < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_all_graphs_hold_the_same_weights(bundle: Path, method: str, tmp_path: Path) -> None:
    part = added(bundle, tmp_path, "int8", method=method).heads["small"].part
    place = tmp_path / "bundle" / "drafters" / "small"
    assert len(list(place.glob("*.data"))) == 1
    graphs = sorted(place.glob("*.onnx"))
    assert len(graphs) == len(part.graphs)
    tables = []
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        tables.append(
            {
                tensor.name: (tuple(tensor.dims), tensor.data_type, [e.value for e in tensor.external_data])
                for tensor in model.graph.initializer
                if tensor.external_data
            }
        )
    assert tables[0]
    assert part.weights.keys() <= tables[0].keys()
    for table in tables[1:]:
        assert table == tables[0]


@pytest.mark.parametrize("method", ["eagle", "eagle3", "hydra", "dflash", "clover", "falcon", "kangaroo"])
def test_a_graph_that_is_another_head_is_not_written(
    bundle: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = layer.layer_frequencies
    monkeypatch.setattr("paceline.export.heads.parts.layer_frequencies", lambda c: right(c)[::-1].copy())
    with pytest.raises(ExportError, match=r"small: the exported graph, run by .*, disagrees with numpy"):
        added(bundle, tmp_path, method=method)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_a_tree_whose_branches_see_each_other_is_not_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every branch gets the path of another one."""
    right = Beam.take

    def wrong(self: Beam, x: Any, slots: Any, dtype: Any = FLOAT) -> Any:
        if dtype != FLOAT:
            slots = self._w.node("Sub", [self._w.whole("wrong", 3), slots], slots.shape, dtype=slots.dtype)
        return right(self, x, slots, dtype)

    monkeypatch.setattr(Beam, "take", wrong)
    monkeypatch.setattr("paceline.export.heads.config.TREES", ((3, 4),))
    with pytest.raises(
        ExportError, match=r"small, trees: the exported graph, run by .*, disagrees with numpy"
    ):
        added(bundle, tmp_path, method="eagle3")


def test_a_step_whose_rows_see_only_earlier_ones_is_not_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.export.heads.falcon.np.kron", lambda a, b: np.tri(len(a) * len(b)))
    with pytest.raises(ExportError, match=r"small: the exported graph, run by .*, disagrees with numpy"):
        added(bundle, tmp_path, method="falcon", depth=4)


def test_trees_are_graphs_of_their_own(bundle: Path, tmp_path: Path) -> None:
    part = added(bundle, tmp_path, method="eagle3").heads["small"].part
    assert list(part.trees) == [f"{depth}x{width}" for depth, width in TREES]
    assert not part.product
    raw = (tmp_path / "bundle" / MANIFEST).read_text()
    older = raw.replace(f'"schema": {SCHEMA}', '"schema": 5')
    (tmp_path / "bundle" / MANIFEST).write_text(older)
    with pytest.raises(BundleError, match="of a kind that schema 5 does not know"):
        read_manifest(tmp_path / "bundle")
    for wrong, what in (("2x9", "matching regex"), ("12x4", "deeper than its chains")):
        (tmp_path / "bundle" / MANIFEST).write_text(raw.replace('"2x4"', f'"{wrong}"'))
        with pytest.raises(BundleError, match=what):
            read_manifest(tmp_path / "bundle")


def test_the_vocabulary_is_a_file_of_ids(bundle: Path, tmp_path: Path) -> None:
    report = added(bundle, tmp_path, method="medusa")
    head = read_head(tmp_path / "head", 2)
    path = report.heads["small"].part.vocabulary
    ids = np.fromfile(tmp_path / "bundle" / path, "<u4")
    assert ids.tolist() == head.vocabulary.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_numpy_computes_what_training_computes(bundle: Path, method: str, tmp_path: Path) -> None:
    trained = pytest.importorskip("paceline.export.training.heads.checkpoint")
    target = read_manifest(bundle).target
    config = small_config(target, method)
    folder = write_small_head(tmp_path / "head", config, small_tensors(config, seed=11))
    head, theirs = read_head(folder, 2), trained.load_head(folder)
    lesson = lesson_of(bundle, target, config.taps, list(range(3, 60)))
    reference = reference_of(head)
    states, past = reference.read(lesson.tokens, lesson.features)
    if method == "kangaroo":
        features = torch.from_numpy(lesson.features)[None]
        with torch.no_grad():
            said = theirs.behind(features, *theirs.rows(features), torch.arange(len(states))[None])
            expected = said[0] @ theirs.head_weight.T
        assert np.abs(states - expected.numpy()).max() < 1e-4 * np.abs(states).max()
        return
    with torch.no_grad():
        expected, cache = theirs.read(torch.tensor(lesson.tokens), torch.from_numpy(lesson.features))
        assert np.abs(states - expected.numpy()).max() < 1e-4
        drafted = theirs.draft(expected[-1], cache, config.depth)
    logits = reference.draft(states[-1:], past, [len(states)], drafted.tokens.numpy()[None])[0]
    assert np.abs(logits - drafted.scores.numpy()).max() < 1e-4 * np.abs(logits).max()

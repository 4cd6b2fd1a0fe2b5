"""Graphs over caches of 16 and 8 bits: right for every kind of attention, and what a bundle says about them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import onnx_ir as ir
import onnxruntime as ort
from body_runner import body_model
from body_runner import session as body_session
from family_models import FAMILIES, VOCAB, write_family
from graph_runner import CAPACITY, Runner, make_runner, path, random_tree, stored_runner, tree_mask
from small_checkpoints import write_checkpoint

from paceline.embedded import embedded_bundle
from paceline.export.caches import Narrow, add_caches, cached_as
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.storage import Storage
from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.loading import load
from paceline.runtime.manifest import BundleError
from paceline.runtime.ops import library
from paceline.runtime.ops import tree_attention as contract

pytestmark = pytest.mark.export

FORMS: tuple[CacheFormat, ...] = get_args(CacheFormat)
OFF = {"fp32": 1e-5, "fp16": 2e-3, "int8": 5e-2}
"""Largest difference over the largest logit of small random models."""
PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 15)]
FAST = ("llama", "gemma2", "gpt2")


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in FAMILIES]
)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return make_runner(write_family(request.param, tmp_path_factory.mktemp("family")))


class Cached:
    """A stored graph over a cache of one form."""

    def __init__(self, runner: Runner, graph: ir.Model, form: CacheFormat, file: Path, kernels: bool) -> None:
        ir.save(graph if form == "fp32" else cached_as(graph, form), file)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if kernels:
            library.register(options)
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        known = runner.facts
        self._layers, self._runner = known.layers, runner
        self._cache = KeyValueCache(known.layers, known.kv_heads, CAPACITY, known.head_dim, form)

    def run(self, tokens: list[int], positions: list[int], mask: np.ndarray, past: int) -> np.ndarray:
        """Logits of new rows, whose keys and values are kept behind the `past` first ones."""
        feed: dict[str, Any] = {
            "token_ids": np.array(tokens, np.int64),
            "positions": np.array(positions, np.int64),
            "tree_mask": mask,
            "past_len": np.array([past], np.int64),
            "rows": np.arange(len(tokens)),
        }
        for side, first in (("k", 0), ("v", self._layers)):
            for i in range(self._layers):
                feed[f"cache_{side}.{i}"] = self._cache.stack[first + i]
                if self._cache.scales is not None:
                    feed[f"{side}_scales.{i}"] = self._cache.scales[first + i]
        if "inv_freq" in (names := [i.name for i in self._session.get_inputs()]):
            from paceline.runtime.model.rope import frequencies

            assert self._runner.facts.rope is not None
            feed["inv_freq"], scale = frequencies(self._runner.facts.rope, self._runner.context)
            feed["rope_scale"] = np.array([scale], np.float32)
        assert set(names) == set(feed)
        outputs = [o.name for o in self._session.get_outputs()]
        got = dict(zip(outputs, self._session.run(None, feed), strict=True))
        new = [got[f"new_{side}.{i}"] for side in ("k", "v") for i in range(self._layers)]
        self._cache.write(past, np.stack(new), slice(None))
        return np.asarray(got["logits"])

    def answers(self) -> np.ndarray:
        """Logits of a prompt in two chunks, and of a tree behind it."""
        parents = random_tree(np.random.default_rng(1), 9, 6)
        tokens = [int(t) for t in np.random.default_rng(2).integers(3, VOCAB, len(parents))]
        rows = [self.run(PROMPT[:7], list(range(7)), np.tri(7, dtype=np.bool_), 0)]
        rows.append(self.run(PROMPT[7:], list(range(7, 15)), np.tri(8, dtype=np.bool_), 7))
        positions = [14 + len(path(parents, node)) for node in range(len(parents))]
        return np.concatenate([*rows, self.run(tokens, positions, tree_mask(parents), 15)])


def ways() -> tuple[bool, ...]:
    """Without our kernels, and with them where they are."""
    return (False, True) if library.available() else (False,)


@pytest.mark.parametrize("profile", ["cpu", "portable"])
def test_every_family_keeps_its_logits_over_every_cache(
    captured: Runner, profile: Any, tmp_path: Path
) -> None:
    graph = stored_runner(captured, Storage("none", None, profile), tmp_path).graph
    wanted = Cached(captured, graph, "fp32", tmp_path / "fp32.onnx", False).answers()
    for form in FORMS:
        both = [Cached(captured, graph, form, tmp_path / f"{form}.onnx", way).answers() for way in ways()]
        for got in both:
            assert np.abs(got - wanted).max() <= OFF[form] * np.abs(wanted).max(), form
        if form == "int8":
            assert np.abs(both[0] - wanted).max() > 1e-6 * np.abs(wanted).max(), "it does round"


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_the_body_rounds_new_rows_as_the_cache_does(form: Narrow) -> None:
    """Attended to from the cache or from beside the row, a row is the same; only the sum's order differs."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, heads, 5, 16)).astype(np.float32) for heads in (4, 2, 2))
    cache = KeyValueCache(1, 2, 9, 16, form)
    cache.write(0, np.concatenate([k, v]), slice(None))
    beside = KeyValueCache(1, 2, 9, 16, form)

    def attend(held: KeyValueCache, past: int) -> np.ndarray:
        given = {"q": q[:, :, past:], "k_new": k[:, :, past:], "v_new": v[:, :, past:]}
        given |= {"cache_k": held.stack[0], "cache_v": held.stack[1], "past_len": np.array([past])}
        given |= {"tree_mask": np.tri(5 - past, dtype=np.bool_), "positions": np.arange(past, 5)}
        if held.scales is not None:
            given |= {"k_scales": held.scales[0], "v_scales": held.scales[1]}
        names = (*contract.INPUTS, *contract.OPTIONAL_INPUTS)
        order = tuple(name if name in given else "" for name in names)
        model = body_model(contract.NAME, order, {}, given, scale=0.3, window=0, softcap=0.0)
        return np.asarray(body_session(model).run(None, given)[0])

    assert np.abs(attend(cache, 4)[:, :, 0] - attend(beside, 0)[:, :, 4]).max() < 1e-6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    source, small = write_checkpoint(folder / "m"), write_checkpoint(folder / "s", num_hidden_layers=3)
    order = Order(str(source), quant="int4", calibrate=False, drafters={"small": str(small)})
    export_bundle(order, folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def older(exported: Path, tmp_path: Path) -> Path:
    """The bundle as an older version exported it, without these graphs."""
    folder = Path(shutil.copytree(exported, tmp_path / "older"))
    for file in folder.rglob("model.*.onnx"):
        file.unlink()

    def without(made: dict[str, Any]) -> None:
        made["schema"] = 2
        made["files"] = {name: f for name, f in made["files"].items() if (folder / name).is_file()}
        for part in (made["target"], *made["drafters"].values()):
            del part["caches"]

    edit(folder, without)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    made = json.loads((folder / "manifest.json").read_text())
    change(made)
    (folder / "manifest.json").write_text(json.dumps(made))


def test_an_older_bundle_is_given_the_graphs_that_the_exporter_writes(exported: Path, older: Path) -> None:
    assert add_caches(older) == open_bundle(exported).manifest
    for name in open_bundle(exported).manifest.files:
        assert (older / name).read_bytes() == (exported / name).read_bytes(), name
    assert add_caches(older) == open_bundle(exported).manifest, "once more changes nothing"
    assert [path.name for path in older.parent.iterdir()] == [older.name]


@pytest.mark.parametrize("at", range(1, 8))
def test_graphs_that_are_added_by_half_leave_the_bundle_as_it_was(
    older: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The disk is full at the nth file that is flushed."""
    before, sync, flushed = open_bundle(older).manifest, os.fsync, itertools.count(1)

    def full(handle: int) -> None:
        if next(flushed) == at:
            raise OSError(errno.ENOSPC, "full")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full") as raised:
        add_caches(older)
    assert raised.value.filename == str(older)
    assert open_bundle(older).manifest == before
    assert [path.name for path in older.parent.iterdir()] == [older.name]


def test_in_a_hub_s_cache_the_blobs_stay(older: Path, tmp_path: Path) -> None:
    """A snapshot is a folder of links; it gets files of its own for what is new."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    for file in sorted(older.rglob("*")):
        if file.is_file():
            name = file.relative_to(older)
            link, blob = snapshot / name, blobs / name.as_posix().replace("/", "-")
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    content = {blob: blob.read_bytes() for blob in blobs.iterdir()}
    made = add_caches(snapshot)
    assert {blob: blob.read_bytes() for blob in blobs.iterdir()} == content
    assert open_bundle(snapshot).manifest == made
    assert (snapshot / made.target.data).is_symlink()


def test_every_graph_of_a_part_reads_the_same_weights(exported: Path) -> None:
    for part in (manifest := open_bundle(exported).manifest).target, *manifest.drafters.values():
        for form in FORMS:
            graph = ir.load(exported / part.graph_for(form)).graph
            held = {v.const_value.location for v in graph.initializers.values() if is_outside(v.const_value)}
            assert held == {Path(part.data).name}


def is_outside(tensor: object) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def test_without_a_word_the_cache_is_fp16_where_all_parts_have_it(exported: Path, older: Path) -> None:
    for folder, asked, form in (
        (exported, None, "fp16"), (exported, "fp32", "fp32"), (exported, "int8", "int8"), (older, None, "fp32"),
    ):  # fmt: skip
        with load(folder, cache=asked, threads=1, drafter="chain") as session:
            list(session.generate([5, 6, 7, 8], max_tokens=9))
            assert session.stats.cache == session.stats.as_dict()["cache"] == form
            assert session._target.cache.form == form


def test_a_cache_that_the_bundle_lacks_names_the_remedy(older: Path) -> None:
    with pytest.raises(BundleError, match=r"no graph for a cache of int8 .*--cache fp32.*export") as caught:
        load(older, cache="int8")
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="fp32, fp16, int8"):
        load(older, cache="fp8")


def test_graphs_that_are_no_attention_s_own_are_refused() -> None:
    graph = ir.load(embedded_bundle() / "target/model.onnx")
    cache = next(value for value in graph.graph.inputs if value.name == "cache_k.0")
    read = ir.node("Identity", [cache])
    graph.graph.append(read)
    with pytest.raises(ExportError, match=r"Identity reads cache_k\.0"):
        cached_as(graph, "int8")

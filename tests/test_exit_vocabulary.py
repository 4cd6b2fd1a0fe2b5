"""An exit that knows some tokens only: the same numbers for these, from few rows of the LM head, which are counted."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
from bundle_copy import edit, refused
from onnx import helper, numpy_helper
from test_halves import FORMS, LAYER, PROMPTS, RANK, trained

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.export.errors import ExportError
from paceline.export.report import SplitReport
from paceline.export.skips.halving import add_split
from paceline.export.skips.trained import Exit, check_exit
from paceline.inspect import weight_bits
from paceline.memory.cache import CacheFormat
from paceline.runtime.budget.overheads import sizes_of
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.manifest import read_manifest
from paceline.runtime.model.contract import contract
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.ops.library import available
from paceline.runtime.request import Sampling
from paceline.runtime.split import CHANCES, IDS, halves

ROWS = 9
KNOWN = 41
"""No multiple of the 16 columns of a tile."""
TYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


@cache
def ids() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.sort(rng.choice(read_manifest(embedded_bundle()).target.vocab, KNOWN, replace=False))


def knowing(known: np.ndarray | None) -> Exit:
    """An exit that nobody trained."""
    made = trained(0.02)
    vocab = None if known is None else len(known)
    return replace(made, config=msgspec.structs.replace(made.config, vocab=vocab), vocabulary=known)


@cache
def split(few: bool) -> tuple[Bundle, SplitReport]:
    place = Path(mkdtemp(prefix="known-"))
    report = add_split(embedded_bundle(), knowing(ids() if few else None), place / "split")
    assert report.split is not None
    return open_bundle(place / "split"), report.split


def said(bundle: Bundle, form: CacheFormat, names: list[str], kernels: bool = True) -> list[np.ndarray]:
    """What the first graph makes of some tokens, between its nodes too."""
    first, _ = halves(bundle.manifest.target)
    path = bundle.path(first.graph_for(form))
    model = onnx.load_model_from_string(path.read_bytes())
    for name in set(names) - {IDS, CHANCES}:
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["R", "V"]))
    graph = Graph(path, find_device("cpu"), 1, first, kernels, raw=model.SerializeToString())
    numbers = np.arange(ROWS)
    feed = {
        "token_ids": numbers + 30,
        "positions": numbers,
        "rows": numbers,
        "past_len": np.zeros(1, np.int64),
        "tree_mask": np.tri(ROWS, dtype=np.bool_),
    }
    for name, shape in contract(first, form)[0].items():
        sizes = [size if isinstance(size, int) else 16 for size in shape]
        kind = np.float32 if "scales" in name else TYPES[form]
        feed.setdefault(name, np.zeros(sizes, kind))
    found: list[np.ndarray] = graph.session.run(names, feed)
    return found


@pytest.mark.skipif(not available(), reason="the native kernels were not built here")
@pytest.mark.parametrize("form", FORMS)
def test_logits_of_a_known_token_are_those_of_the_whole_head_bit_for_bit(form: CacheFormat) -> None:
    [whole], [few] = (said(split(only)[0], form, ["early.logits"]) for only in (False, True))
    assert few.shape == (ROWS, KNOWN)
    assert np.array_equal(few, whole[:, ids()])


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "function bodies"])
def test_it_names_its_own_tokens_by_the_targets_ids_the_likeliest_first(kernels: bool) -> None:
    """Chances are shares of what it knows."""
    whole = said(split(False)[0], "fp32", ["early.logits"], kernels)[0][:, ids()]
    early, chances = said(split(True)[0], "fp32", [IDS, CHANCES], kernels)
    assert early.shape == (ROWS, 32)
    law = whole - np.log(np.exp(whole).sum(axis=1, keepdims=True))
    assert np.allclose(chances, -np.sort(-law, axis=1)[:, :32], atol=1e-4)
    places = np.searchsorted(ids(), early)
    assert np.array_equal(ids()[places], early)
    assert np.allclose(np.take_along_axis(law, places, axis=1), chances, atol=1e-4)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(temperature=1)], ids=["greedy", "coupled"]
)
def test_answers_are_plain_decodings(sampling: Sampling) -> None:
    def told(mirror: str, drafter: str) -> list[list[int]]:
        with load(split(True)[0].folder, drafter=drafter, threads=2, mirror=mirror) as session:  # type: ignore[arg-type]
            how = {"sampling": sampling, "seed": 5, "max_tokens": 40}
            return [session.generate(prompt, **how).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]

    assert told("on", "chain") == told("off", "none")


def test_a_pass_reads_less_and_the_copied_rows_are_told_and_counted() -> None:
    """By a plan of a session that runs the two graphs, and by no other."""
    (whole, all_told), (few, told) = split(False), split(True)
    target, wide = few.manifest.target, few.manifest.target.hidden
    assert told.share < all_told.share
    assert all_told.copied == 0
    tiles = -(-KNOWN // 16) * 16
    head = few.manifest.target.parameters
    assert 0 < told.copied < tiles * wide * 4 < head
    assert target.split is not None
    assert target.split.data is not None
    own = few.manifest.files[target.split.data].bytes
    maps = 4 * (2 * wide * RANK + wide)
    assert maps + told.copied <= own < maps + told.copied + 6 * 4096  # at most a page is lost for each
    assert own < told.bytes
    halved, plain = (sizes_of(few, target, halved=each) for each in (True, False))
    assert halved.weights == plain.weights + own
    assert (halved.graphs, plain.graphs) == (2, 1)
    data = whole.manifest.target.split
    assert data is not None
    assert plain.weights == sizes_of(whole, whole.manifest.target).weights
    bits, of_all = (weight_bits(b.manifest.target, b.manifest) for b in (few, whole))
    assert 8 * own / head > 0.05
    assert bits == pytest.approx(of_all, abs=0.01)


def test_what_is_no_vocabulary_of_the_target_is_refused(tmp_path: Path) -> None:
    manifest = read_manifest(embedded_bundle())
    for known in (ids()[::-1].copy(), np.append(ids(), manifest.target.vocab), np.append(-1, ids())):
        with pytest.raises(ExportError, match="is not a list of ascending ids below"):
            check_exit(knowing(known), manifest)
        with pytest.raises(ExportError, match="train it again"):
            add_split(embedded_bundle(), knowing(known), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_whose_vocabulary_or_weights_are_not_there_is_refused(tmp_path: Path) -> None:
    for name, (change, words) in enumerate(
        [
            ({"vocab": 31}, "names 32 tokens of 31"),
            ({"vocab": 1 << 20}, "of the 4096 that it has"),
            ({"data": "target/none.data"}, "which is no file of its own beside the graphs"),
            ({"data": "target/model.onnx.data"}, "which is no file of its own beside the graphs"),
            ({"data": "tokenizer.json"}, "which is no file of its own beside the graphs"),
            ({"data": None}, "has data in 'first.onnx.data'"),
        ]
    ):
        copy = tmp_path / str(name)
        shutil.copytree(split(True)[0].folder, copy)
        edit(copy, lambda manifest, c=change: manifest["target"]["split"].update(c))  # type: ignore[misc]
        refused(lambda folder=copy: open_bundle(folder, reread=True), words)  # type: ignore[misc]


@pytest.mark.parametrize("wrong", ["beyond", "below", "twice", "none"])
def test_a_graph_that_names_what_is_no_token_never_runs(tmp_path: Path, wrong: str) -> None:
    bundle = split(True)[0]
    first, _ = halves(bundle.manifest.target)
    path = bundle.path(first.graph)
    model = onnx.load_model_from_string(path.read_bytes())
    [table] = [tensor for tensor in model.graph.initializer if tensor.name == "early.tokens"]
    numbers = numpy_helper.to_array(table).copy()
    if wrong == "none":
        numbers = numbers[:0]
    else:
        numbers[-1 if wrong == "beyond" else 0] = {"beyond": first.vocab, "below": -1}.get(wrong, numbers[1])
    table.CopyFrom(numpy_helper.from_array(numbers, table.name))
    words = "names tokens by a list that is not one of ascending ids"
    refused(lambda: Graph(path, find_device("cpu"), 1, first, raw=model.SerializeToString()), words)


def test_a_layer_without_an_exit_keeps_the_whole_head(tmp_path: Path) -> None:
    report = add_split(embedded_bundle(), LAYER, tmp_path / "out").split
    assert report is not None
    assert report.copied == 0
    assert report.part.split is not None
    assert (report.part.split.vocab, report.part.split.data) == (None, None)

"""Heads that a bundle may not have: files that were tampered with are refused before anything runs them."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper
from toy_heads import FORMS, WIDE, add_head, draft_graph, random_toy

from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError, File, Part, read_manifest, write_manifest
from paceline.runtime.model.contract import contract, draft_contract
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.head import Head
from paceline.runtime.model.model import Model

DEPTHS = (1, 16)
Edit = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storyteller as if its target gave a tap, with two heads."""
    folder = tmp_path_factory.mktemp("heads") / "bundle"
    shutil.copytree(embedded_bundle(), folder)
    manifest = read_manifest(folder)
    target = msgspec.structs.replace(manifest.target, taps=["hidden"])
    write_manifest(msgspec.structs.replace(manifest, schema=5, target=target), folder)
    for name, attends in (("flat", False), ("tall", True)):
        toy = random_toy(target.hidden, target.vocab, range(0, target.vocab, 9), attends)
        add_head(folder, name, toy, ["hidden"], DEPTHS)
    return folder


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt; nothing of it was verified before."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def replaced(folder: Path, name: str, raw: bytes) -> None:
    """Another file under a name, with its true size and digest in the manifest."""
    (folder / name).write_bytes(raw)
    manifest = read_manifest(folder)
    files = manifest.files | {name: File(len(raw), hashlib.sha256(raw).hexdigest())}
    write_manifest(msgspec.structs.replace(manifest, files=files), folder)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message


def test_whole_heads_are_admitted(bundle: Path) -> None:
    assert set(open_bundle(bundle).manifest.drafters) == {"small", "flat", "tall"}


def node(op: str, domain: str = "", **attributes: object) -> Edit:
    made = helper.make_node(op, ["noise"], ["extra"], domain=domain, **attributes)
    return lambda model: model.graph.node.append(made)


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    place = next(entry for entry in tensor.external_data if entry.key == "location")
    place.value = "../target/model.onnx.data"


def lacking(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "speaks")
    model.graph.initializer.remove(tensor)


def shifted(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "speaks")
    next(entry for entry in tensor.external_data if entry.key == "offset").value = "0"


def grown(model: onnx.ModelProto) -> None:
    for at in range(128 * 2 * 16):
        made = helper.make_node("Cast", [f"x{at}" if at else "noise"], [f"x{at + 1}"], to=1)
        model.graph.node.append(made)


def expanded(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**40], np.int64), "large"))
    model.graph.node.append(helper.make_node("Expand", ["noise", "large"], ["extra"]))


@pytest.mark.parametrize(
    "graph", ["tall/draft.16.onnx", "tall/draft.1.int8.onnx", "flat/draft.1.onnx", "tall/model.fp16.onnx"]
)
@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (node("Loop", body=helper.make_graph([], "inner", [], [])), "a graph inside a node"),
        (node("Range"), "'Range'"),
        (node("NonZero"), "'NonZero'"),
        (node("EPContext", "com.microsoft"), "com.microsoft::EPContext"),
        (elsewhere, "'../target/model.onnx.data'"),
        (lacking, "no weight 'speaks'"),
        (shifted, "place of the weight 'speaks'"),
        (grown, "too many for"),
        (expanded, "expands"),
    ],
)
def test_a_graph_that_no_exporter_writes_is_refused(bundle: Path, graph: str, edit: Edit, word: str) -> None:
    name = f"drafters/{graph}"
    model = onnx.load(bundle / name, load_external_data=False)
    edit(model)
    replaced(bundle, name, model.SerializeToString())
    refused(bundle, graph, word)


def test_a_graph_may_have_nodes_for_every_level_that_it_drafts_and_no_more(bundle: Path) -> None:
    """As many nodes as sixteen levels may have are too many for one."""
    for graph, fine in (("draft.16.onnx", True), ("draft.1.onnx", False)):
        name = f"drafters/tall/{graph}"
        model = onnx.load(bundle / name, load_external_data=False)
        for at in range(128 * 2 * 16 - len(model.graph.node)):
            model.graph.node.append(helper.make_node("Cast", ["noise"], [f"x{at}"], to=1))
        replaced(bundle, name, model.SerializeToString())
        if fine:
            open_bundle(bundle)
    refused(bundle, "draft.1.onnx", "4096 nodes, too many for 1 layers")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: ids[::-1], ("do not ascend",)),
        (lambda ids: np.r_[ids[:1], ids[:-1]], ("do not ascend",)),
        (
            lambda ids: np.r_[ids[:-1], np.uint32(4096)],
            ("holds the token 4096", "has 4096", "for this target"),
        ),
        (lambda ids: np.r_[ids[:-1], np.uint32(2**32 - 1)], ("holds the token 4294967295",)),
    ],
)
def test_a_vocabulary_that_is_none_of_the_targets_is_refused(
    bundle: Path, change: Callable[[np.ndarray], np.ndarray], words: tuple[str, ...]
) -> None:
    name = "drafters/flat/vocabulary.u32"
    ids = np.fromfile(bundle / name, "<u4")
    replaced(bundle, name, change(ids).astype("<u4").tobytes())
    refused(bundle, "vocabulary.u32", *words)


def test_a_vocabulary_that_changes_after_it_was_verified_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.drafters["tall"]
    assert opened.draft_ids(part).tolist() == list(range(0, 4096, 9))
    every = opened.draft_ids(msgspec.structs.replace(part, vocabulary=None))
    assert every.tolist() == list(range(part.vocab))
    (bundle / "drafters/tall/vocabulary.u32").write_bytes(every.astype("<u4").tobytes())
    with pytest.raises(BundleError, match=r"vocabulary\.u32 is damaged"):
        opened.draft_ids(part)


def opening(bundle: Path, part: Part, graph: str) -> Graph:
    return Graph(bundle / graph, find_device("cpu"), 1, part)


def test_graphs_that_are_not_those_of_the_manifest_are_refused(bundle: Path) -> None:
    part = read_manifest(bundle).drafters["tall"]
    read, draft = opening(bundle, part, part.graph), opening(bundle, part, part.drafts[1])
    ids = np.arange(part.vocab)
    with pytest.raises(BundleError, match="implies an input"):
        Model(draft, part, 64, widest=1)
    with pytest.raises(BundleError, match=r"implies state \[R, 17\]"):
        Model(read, msgspec.structs.replace(part, hidden=WIDE + 1), 64, widest=1)
    head = Head(Model(read, part, 64, widest=1), ids, lambda levels: draft)
    with pytest.raises(BundleError, match=r"draft\.1\.onnx is not the graph .* implies noise \[16, "):
        head.draft(2, 0)
    other = Head(Model(read, part, 64, widest=1), ids, lambda levels: read)
    with pytest.raises(BundleError, match="implies an input"):
        other.draft(1, 0)


@pytest.mark.parametrize("name", ["token_ids", "features", "token", "noise", "tokens", "scores", "cache_k.0"])
def test_an_adapter_is_not_called_as_what_every_graph_has(bundle: Path, name: str) -> None:
    part = msgspec.structs.replace(read_manifest(bundle).drafters["tall"], adapters={name: [3]})
    made = contract if name in ("token_ids", "features") else lambda part, form: draft_contract(part, form, 2)
    with pytest.raises(BundleError, match=f"an adapter may not be called '{name}'"):
        made(part, "fp32")


@pytest.mark.parametrize("form", FORMS)
def test_a_contract_is_what_the_toys_are(bundle: Path, form: str) -> None:
    part = read_manifest(bundle).drafters["tall"]
    toy = random_toy(part.features or 0, 4096, range(0, 4096, 9), True)
    given = draft_graph(toy, form, 3).graph  # type: ignore[arg-type]
    inputs, outputs = draft_contract(part, form, 3)  # type: ignore[arg-type]
    assert {i.name for i in given.input} == set(inputs)
    assert {o.name for o in given.output} == set(outputs)
    assert next(i for i in given.input if i.name == "token").type.tensor_type.elem_type == TensorProto.INT64

"""What a manifest may say: its schemas, layouts that can be read, weights in their file, heads that draft."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from paceline.runtime.manifest import LAYOUT, SCHEMA, BundleError, as_label, read_manifest, write_manifest

Json = dict[str, Any]
Edit = Callable[[Json], object]
_FILE_BYTES = 8192


def manifest(schema: int = SCHEMA) -> Json:
    """The least that is a manifest, with two packed weights where the schema knows them."""
    files = {
        name: {"bytes": _FILE_BYTES, "sha256": "0" * 64}
        for name in ("tokenizer.json", "t/m", "t/m.data", "t/m8")
    }
    target: Json = {
        "graph": "t/m", "architecture": "llama", "layers": 1, "kv_heads": 1, "head_dim": 8, "hidden": 8,
        "vocab": 16, "context": 64, "parameters": 100, "quant": "int4", "block": 32,
    }  # fmt: skip
    if schema > 1:
        weights = {
            "a": {"dtype": "uint8", "shape": [4, 64], "offset": 0},
            "b": {"dtype": "bfloat16", "shape": [32, 64], "offset": 4096},
        }
        target |= {"layout": 1, "weights": weights}
    if schema > 2:
        target["caches"] = {"int8": "t/m8"}
    return {
        "schema": schema, "name": "n", "licence": "l", "profile": "cpu", "producer": {}, "target": target,
        "files": files,
    }  # fmt: skip


def write(folder: Path, made: Json) -> Path:
    (folder / "manifest.json").write_text(json.dumps(made))
    return folder


def refused(folder: Path, made: Json, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_manifest(write(folder, made))
    message = str(caught.value)
    assert message.isprintable()
    for word in ("manifest.json", *words):
        assert word in message, message


@pytest.mark.parametrize("schema", [1, 2, 3, 4, SCHEMA])
def test_what_was_written_is_read_and_written_again_as_it_was(tmp_path: Path, schema: int) -> None:
    first = read_manifest(write(tmp_path, manifest(schema)))
    write_manifest(first, tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert read_manifest(tmp_path) == first
    assert ("layout" in text) == ("weights" in text) == (schema > 1)
    assert ("caches" in text) == (schema > 2)
    assert ("kind" in text) == ("adapters" in text) == (schema > 3)
    assert ("drafts" in text) == ("vocabulary" in text) == (schema > 4)


@pytest.mark.parametrize("schema", [3, 4])
def test_a_field_that_never_meant_anything_is_passed_over_where_it_was_written(
    tmp_path: Path, schema: int
) -> None:
    made, without = manifest(schema), read_manifest(write(tmp_path, manifest(schema)))
    made["target"]["ahead"] = 1
    assert read_manifest(write(tmp_path, made)) == without
    made["schema"] = SCHEMA
    refused(tmp_path, made, "ahead")


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_manifest_in_a_hub_s_cache_is_replaced_and_its_blob_stays(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "blobs" / "f00", tmp_path / "snapshots" / "1"
    made = read_manifest(write(tmp_path, manifest()))
    for place in (blob.parent, snapshot):
        place.mkdir(parents=True)
    (tmp_path / "manifest.json").rename(blob)
    blob.chmod(0o644)
    (snapshot / "manifest.json").symlink_to(Path("../../blobs/f00"))
    before = blob.read_bytes()
    write_manifest(msgspec.structs.replace(made, acceptance={"chain": 2.5}), snapshot)
    assert blob.read_bytes() == before
    assert read_manifest(snapshot).acceptance == {"chain": 2.5}
    assert (snapshot / "manifest.json").stat().st_mode & 0o777 == 0o644


def test_a_part_tells_its_graph_for_each_form_of_the_cache(tmp_path: Path) -> None:
    part = read_manifest(write(tmp_path, manifest())).target
    assert [part.graph_for(form) for form in ("fp32", "int8")] == ["t/m", "t/m8"]
    with pytest.raises(BundleError, match=r"no graph for a cache of fp16 .*use --cache fp32"):
        part.graph_for("fp16")


def caches(**graphs: str) -> Edit:
    return lambda made: made["target"].update(caches=graphs)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (caches(int8="t/n"), "not among its files"),
        (caches(int8="tokenizer.json"), "not another one beside"),
        (caches(int8="t/m"), "not another one beside"),
        (caches(int8="t/m.data"), "not another one beside"),
        (caches(int8="../m8"), "caches"),
        (caches(fp8="t/m8"), "caches"),
        (lambda made: made["target"].update(caches=["t/m8"]), "caches"),
        (lambda made: made.update(schema=2), "schema 2 does not know"),
    ],
)
def test_nonsense_about_caches_is_refused(tmp_path: Path, change: Edit, word: str) -> None:
    made = manifest()
    change(made)
    refused(tmp_path, made, word)


@pytest.mark.parametrize("tokens", [0, 0.5, -1, 1026, 1e9, "2"])
def test_tokens_that_no_round_can_yield_are_refused(tmp_path: Path, tokens: object) -> None:
    made = manifest()
    made["acceptance"] = {"chain": tokens}
    refused(tmp_path, made, "acceptance")


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**40] * 4, [2**31]])
def test_adapters_that_no_machine_holds_are_refused(tmp_path: Path, shape: list[int]) -> None:
    made = manifest()
    made["target"]["adapters"] = {"a": [4, 8], "b": shape}
    refused(tmp_path, made, "target has adapters of", "bytes, more than")
    made["target"]["adapters"] = {"a": [4, 8], "b": [3]}
    assert read_manifest(write(tmp_path, made)).target.adapter_bytes == 4 * (32 + 3)


def test_weights_are_told_with_their_place(tmp_path: Path) -> None:
    part = read_manifest(write(tmp_path, manifest())).target
    assert part.data == "t/m.data"
    assert {name: weight.bytes for name, weight in part.weights.items()} == {"a": 256, "b": 4096}


def test_what_is_newer_says_that_it_is_newer(tmp_path: Path) -> None:
    refused(tmp_path, manifest(SCHEMA + 1), f"schema {SCHEMA + 1} is newer", "upgrade paceline")
    made = manifest()
    made["target"]["layout"] = LAYOUT + 1
    refused(tmp_path, made, f"layout {LAYOUT + 1}, newer", "upgrade paceline")


def weight(name: str, **values: object) -> Edit:
    return lambda made: made["target"]["weights"][name].update(values)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (weight("a", offset=4096), "overlap"),
        (weight("b", offset=192), "overlap"),
        (weight("b", offset=4160), "up to byte 8256"),
        (weight("b", shape=[32, 65]), "up to byte"),
        (weight("b", offset=2**49), "up to byte"),
        (weight("a", offset=8), "multiple"),
        (weight("a", offset=-64), "offset"),
        (weight("a", shape=[]), "shape"),
        (weight("a", shape=[0, 64]), "shape"),
        (weight("a", shape=[2**41]), "shape"),
        (weight("a", shape=[1] * 9), "shape"),
        (weight("a", dtype="complex64"), "dtype"),
        (weight("a", location="../secret"), "location"),
        (lambda made: made["files"].pop("t/m.data"), "not among its files"),
        (lambda made: made["target"].update(layout=0), "layout"),
        (lambda made: made["target"]["weights"].update({"a\nb": made["target"]["weights"]["a"]}), "weights"),
        (lambda made: made.update(profile="gpu"), "profile"),
        (lambda made: made.update(schema=1), "schema 1"),
    ],
)
def test_nonsense_about_weights_is_refused(tmp_path: Path, change: Edit, word: str) -> None:
    made = manifest()
    change(made)
    refused(tmp_path, made, word)


def test_the_number_of_weights_is_bounded(tmp_path: Path) -> None:
    made = manifest()
    made["target"]["weights"] = {
        str(i): {"dtype": "uint8", "shape": [1], "offset": 0} for i in range(2**15 + 1)
    }
    refused(tmp_path, made, "weights")


def test_the_portable_profile_came_with_schema_2(tmp_path: Path) -> None:
    made = manifest() | {"profile": "portable"}
    assert read_manifest(write(tmp_path, made)).profile == "portable"
    refused(tmp_path, manifest(1) | {"profile": "portable"}, "schema 1", "portable")


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    good = read_manifest(write(tmp_path, manifest()))
    bad = msgspec.structs.replace(good, name="x" * 300)
    with pytest.raises(ValueError, match="name"):
        write_manifest(bad, tmp_path)
    assert read_manifest(tmp_path) == good


def test_a_label_is_made_of_any_text() -> None:
    assert as_label("Tiny\tModel\x1b[31m\n\u202etxt") == "Tiny Model [31m  txt"
    assert as_label("A  title ") == "A  title "
    assert as_label("x" * 500) == "x" * 200


def headed(**changes: object) -> Json:
    """A manifest with a head of two depths, over a cache of 32 and 8 bits and a vocabulary of its own."""
    made = manifest()
    made["target"]["taps"] = ["hidden", "hidden.0"]
    made["drafters"] = {
        "fast": made["target"]
        | {
            "graph": "h/m", "taps": [], "weights": {}, "caches": {"int8": "h/m8"}, "kind": "head",
            "reads": ["hidden.0", "hidden"], "features": 16, "vocab": 5, "vocabulary": "h/ids", "method": "eagle3",
            "drafts": {"1": "h/draft.1.onnx", "4": "h/draft.4.onnx"},
        }
    }  # fmt: skip
    names = ("h/m", "h/m8", "h/ids", *(f"h/draft.{n}.{end}" for n in (1, 4) for end in ("onnx", "int8.onnx")))
    made["files"] |= {name: {"bytes": _FILE_BYTES, "sha256": "0" * 64} for name in names}
    made["files"]["h/ids"]["bytes"] = 20
    made["drafters"]["fast"] |= changes
    return made


def test_a_head_tells_its_graphs_by_form_and_depth(tmp_path: Path) -> None:
    part = read_manifest(write(tmp_path, headed())).drafters["fast"]
    assert part.graphs_for("fp32") == ("h/m", "h/draft.1.onnx", "h/draft.4.onnx")
    assert part.graphs_for("int8") == ("h/m8", "h/draft.1.int8.onnx", "h/draft.4.int8.onnx")
    assert set(part.graphs) == {*part.graphs_for("fp32"), *part.graphs_for("int8")}
    assert [part.levels_of(name) for name in ("m", "m8", "draft.1.onnx", "draft.4.int8.onnx")] == [1, 1, 1, 4]
    assert (part.output, part.drafts) == (("state", 8), {1: "h/draft.1.onnx", 4: "h/draft.4.onnx"})
    flat = read_manifest(write(tmp_path, headed(layers=0, caches={}))).drafters["fast"]
    assert flat.graphs_for("int8") == flat.graphs_for("fp32")
    assert flat.has_form("fp16")
    assert not part.has_form("fp16")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drafts": {}}, ("fast, a head, has no graph that drafts",)),
        ({"drafts": {"0": "h/draft.1.onnx"}}, ("drafts",)),
        ({"drafts": {"17": "h/draft.1.onnx"}}, ("drafts",)),
        ({"drafts": {"x": "h/draft.1.onnx"}}, ("drafts",)),
        ({"drafts": {"2": "h/draft.2.onnx"}}, ("'h/draft.2.onnx'", "not among its files")),
        ({"drafts": {"1": "h/m"}}, ("'h/m'", "not another graph beside")),
        ({"drafts": {"1": "h/m8"}}, ("'h/m8'", "not another graph beside")),
        ({"drafts": {"1": "t/m"}}, ("'t/m'", "not another graph beside")),
        ({"drafts": {"1": "h/draft.1.onnx", "2": "h/draft.1.onnx"}}, ("not another graph beside",)),
        ({"drafts": {"1": "../h/m"}}, ("drafts",)),
        ({"caches": {"int8": "h/m8", "fp16": "h/ids"}}, ("'h/draft.1.fp16.onnx'", "not among its files")),
        ({"vocabulary": "h/other"}, ("'h/other'", "not among its files")),
        ({"vocab": 6}, ("vocabulary of 20 bytes", "6 tokens take 24")),
        ({"vocabulary": None, "vocab": 17}, ("knows 17 tokens where the target has 16",)),
        ({"reads": ["hidden.1", "hidden"]}, ("reads hidden.1, which the target does not give",)),
        ({"reads": ["hidden"]}, ("reads 1 taps of 8 columns", "fed with 16")),
        ({"features": 24}, ("reads 2 taps of 8 columns", "fed with 24")),
        ({"reads": [], "features": None}, ("fast, a head, reads 0 taps",)),
        ({"taps": ["hidden"]}, ("a head, gives taps",)),
        (
            {"rope": {"kind": "dynamic", "original_context": 8, "dim": 4}},
            ("a head, has rotary frequencies that depend on the length",),
        ),
        ({"kind": "feature decoder"}, ("feature decoder, has graphs that draft, as only a head and",)),
        ({"kind": "decoder"}, ("a decoder, reads 2 taps",)),
        ({"kind": "feature decoder", "drafts": {}}, ("has a vocabulary of its own, as only a head may",)),
        (
            {"kind": "feature decoder", "drafts": {}, "vocabulary": None, "layers": 0},
            ("has no layers, as only a head may",),
        ),
    ],
)
def test_nonsense_about_heads_is_refused(
    tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    refused(tmp_path, headed(**changes), *words)


def test_only_parts_of_this_schema_draft(tmp_path: Path) -> None:
    refused(tmp_path, headed() | {"schema": 4}, "fast is of a kind that schema 4 does not know")
    made = manifest()
    made["target"]["layers"] = 0
    refused(tmp_path, made, "target, a decoder, has no layers")


@pytest.mark.parametrize("name", ["eagle3", "medusa", "hydra"])
def test_a_head_may_be_called_by_its_method(tmp_path: Path, name: str) -> None:
    made = headed()
    made["drafters"] = {name: made["drafters"]["fast"]}
    assert list(read_manifest(write(tmp_path, made)).drafters) == [name]
    made["drafters"] = {"head": made["drafters"][name]}
    refused(tmp_path, made, "may not be named 'head'")

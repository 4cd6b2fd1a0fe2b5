"""`paceline export` on the command line: one line for every refusal, a summary, and JSON."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from command_line import call
from small_checkpoints import WORDS, small_tokenizer, write_checkpoint

from paceline.runtime.bundle.bundle import open_bundle

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=1)


def refused(done, *words):
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("paceline: error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def test_a_checkpoint_becomes_a_bundle_and_json_reports_it(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 2)
    out = tmp_path / "bundle"
    options = ["--quant", "int8", "--eval", text, "--name", "Tiny", "--licence", "MIT", "--json", "-q"]
    done = call("export", checkpoint, out, *options)
    found = done.json()
    assert done.err == ""
    bundle = open_bundle(out)
    assert (bundle.manifest.name, bundle.manifest.licence) == ("Tiny", "MIT")
    assert found["bytes"] == sum(f.bytes for f in bundle.manifest.files.values())
    target = found["parts"]["target"]
    assert target["quant"] == "int8"
    assert target["rows_checked"] > 50
    assert target["spread"] < 0.1
    assert target["perplexity"]["bundle"] == pytest.approx(target["perplexity"]["torch"], rel=0.1)
    assert found["peak_rss_bytes"] is None or found["peak_rss_bytes"] > 1e7
    refused(call("export", checkpoint, out, "-q"), str(out), "exists already", "--force")


def test_without_quiet_a_summary_names_sizes_errors_and_the_next_command(checkpoint, tmp_path):
    done = call("export", checkpoint, tmp_path / "bundle")
    assert done.code == 0, done.err
    for words in (
        "weights as they came",
        "nodes a layer",
        "against torch",
        "peak memory",
        "next: paceline run -b",
    ):
        assert words in done.out
    assert "target" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "cuda"], "profile cuda does not exist yet"),
        (["--profile", "static", "--static-rows", "1,x"], "--static-rows 1,x holds no sizes"),
        (["--static-context", "512"], "are for --profile static: give that too"),
        (["--quant", "int4", "--block", "64"], "--block 64"),
        (["--block", "32"], "--block needs"),
        (["--drafter", "suffix=somewhere"], "may not be named 'suffix'"),
        (["--revision", "main"], "no revision"),
        (["--eval", "/no/such/text"], "No such file"),
        (["--quant", "int8", "--calibrate", "none"], "--calibrate needs --quant int4"),
        (["--quant", "int4", "--bits", "5", "--calibrate", "none"], "leave --calibrate none out"),
    ],
)
def test_a_refusal_is_one_line(checkpoint, tmp_path, options, words):
    refused(call("export", checkpoint, tmp_path / "bundle", *options, "-q"), words)
    assert not (tmp_path / "bundle").exists()


def test_a_gguf_file_that_is_not_there_is_no_hub_id(tmp_path):
    refused(call("export", tmp_path / "nope.gguf", tmp_path / "bundle", "-q"), "there is no such file")


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for options in ([], ["-q"]):  # no empty line in place of a bar
        refused(call("export", tmp_path / "empty", tmp_path / "bundle", *options), str(tmp_path / "empty"))
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_drafter_of_another_tokenizer_says_what_both_share(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other", tokenizer=small_tokenizer("jumping foxes, lazy dogs"))
    done = call("export", checkpoint, tmp_path / "bundle", "--drafter", f"fox={other}", "-q")
    assert done.code == 0, done.err
    shown = call("inspect", tmp_path / "bundle")
    assert "are the target's, too" in " ".join(shown.out.split())


@pytest.mark.parametrize("given", ["fox", "fox=", "=dir"])
def test_a_drafter_without_name_or_folder_is_wrong_usage(checkpoint, tmp_path, given):
    done = call("export", checkpoint, tmp_path / "bundle", "--drafter", given)
    assert done.code == 2
    assert "NAME=DIR" in done.err


def test_a_quant_that_does_not_exist_is_wrong_usage(checkpoint, tmp_path):
    assert call("export", checkpoint, tmp_path / "bundle", "--quant", "int3").code == 2


def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path):
    folder = write_checkpoint(tmp_path / "model", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    refused(call("export", folder, tmp_path / "bundle", "-q"), "tokenizer.json cannot be read")


def test_without_the_export_extra_the_line_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("paceline.export.") or name == "paceline.export":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(call("export", checkpoint, tmp_path / "bundle", "-q"), "pip install 'paceline[export]'")


def test_a_calibration_text_that_is_none_is_refused_and_a_real_one_is_used(checkpoint, tmp_path):
    binary, empty, text = tmp_path / "binary", tmp_path / "empty", tmp_path / "text"
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text(" \n")
    text.write_text(WORDS * 40)
    out = tmp_path / "bundle"
    for file, word in ((binary, "UTF-8"), (empty, "is empty")):
        refused(call("export", checkpoint, out, "--quant", "int4", "--calibrate", file), "--calibrate", word)
    refused(call("export", checkpoint, out, "--quant", "int8", "--calibrate", "self"), "--quant int4")
    assert not out.exists()
    done = call("export", checkpoint, out, "--quant", "int4", "--calibrate", text, "--json")
    said = " ".join(done.err.split())
    assert "note: target has only 0." in said
    assert "--quant int8 takes seconds" in said
    assert done.json()["parts"]["target"]["calibrated"] is True

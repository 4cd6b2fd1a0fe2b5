"""Whatever is given, a failure is one line on stderr, a non-zero exit and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Done, call, copied_bundle

from paceline.errors import complain, friendly_errors


def assert_one_line(done: Done, *words: str, code: int = 1) -> None:
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("paceline: error: ")
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    for word in words:
        assert word in done.err
    assert done.code == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["run"], ["PROMPT"]),
        (["run", "--bogus", "x"], ["--bogus"]),
        (["run", "x", "--temp", "warm"], ["--temp"]),
        (["run", "x", "--temp", "-1"], ["--temp"]),
        (["run", "x", "--temp", "nan"], ["--temp"]),
        (["run", "x", "--temp", "inf"], ["--temp"]),
        (["run", "x", "--top-p", "1.5"], ["--top-p"]),
        (["run", "x", "--top-k", "-3"], ["--top-k"]),
        (["run", "x", "--max-tokens", "0"], ["--max-tokens"]),
        (["run", "x", "--max-tokens", "1e3"], ["--max-tokens"]),
        (["run", "x", "--seed", "-1"], ["--seed"]),
        (["run", "x", "--context", "1"], ["--context"]),
        (["run", "x", "--threads", "0"], ["--threads"]),
        (["run", "x", "--draft-depth", "0"], ["--draft-depth"]),
        (["run", "x", "--logit-bias", "12"], ["--logit-bias", "ID=VALUE"]),
        (["run", "x", "--logit-bias", "12=nan"], ["--logit-bias"]),
        (["run", "x", "--ban", "the"], ["--ban"]),
        (["run", "x", "--file", "y"], ["not both"]),
        (["run", "x", "--raw", "-s", "be brief"], ["--system-prompt"]),
        (["bench", "--repeats", "0"], ["--repeats"]),
        (["bench", "--plot", "ratios.pdf"], [".png"]),
        (["train", "lm", "out"], ["--text"]),
        (["train", "lm", "out", "--text", "x", "--hidden", "100", "--heads", "3"], ["--hidden"]),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], words: list[str]) -> None:
    done = call(*arguments)
    assert_one_line(done, *words, code=2)
    assert "valid int" not in done.err
    assert "valid float" not in done.err
    assert "in the range" not in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-n", "abc"], "'abc' is no whole number"),
        (["-n", "0"], "it must be 1 or more, not 0"),
        (["--max-nodes", "2000"], "it must be from 1 to 1024, not 2000"),
        (["--temp", "warm"], "'warm' is no number"),
        (["--repeat-penalty", "0"], "--repeat-penalty: it must be between 0.01 and 100 (1 is off), not 0"),
        (["--top-p", "0"], "--top-p: it must be above 0 and at most 1 (off), not 0"),
        (["--frequency-penalty", "-1e9"], "--frequency-penalty: it must be between -1000 and 1000"),
    ],
    ids=str,
)
def test_what_a_number_must_be_is_said_in_words_and_under_the_name_of_the_flag(
    arguments: list[str], told: str
) -> None:
    assert_one_line(call("run", "x", *arguments), told, code=2)


def test_the_help_gives_the_range_that_holds() -> None:
    told = " ".join(call("run", "--help").out.replace("│", " ").split())
    assert "Divide the logits of tokens seen: between 0.01 and 100 (1 is off)." in told
    assert "--repeat-penalty X Divide" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x", "-b", ""],
        ["run", "-f", ""],
        ["run", "x", "--suffix-store", ""],
        ["chat", ""],
        ["inspect", ""],
        ["plan", "--bundle="],
        ["bench", "--plot", ""],
        ["export", "", "out"],
        ["export", "model", ""],
        ["train", "lm", "", "--text", "x"],
        ["train", "lm", "out", "--text", "x", "--from", ""],
        ["train", "distill", "out", "--target", "", "--text", "x"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(arguments: list[str]) -> None:
    assert_one_line(call(*arguments), "an empty text is no ", "name one", code=2)


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    assert_one_line(call("run", prompt), "empty")


def test_an_empty_stdin_is_refused() -> None:
    assert_one_line(call("run", "-"), "empty")


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    assert_one_line(call("run", "-f", tmp_path / "none.txt"), "none.txt", "No such file")


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    assert_one_line(call("run", "-f", tmp_path), str(tmp_path))


@pytest.mark.parametrize("data", [b"\x7fELF\x00\x00\x01", b"\xff\xfe\xfd", bytes(range(128, 256))])
def test_a_binary_prompt_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "prompt").write_bytes(data)
    assert_one_line(call("run", "-f", tmp_path / "prompt"), "text")
    assert_one_line(call("run", "-", stdin=data), "stdin", "text")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file here")
def test_an_endless_prompt_is_refused() -> None:
    assert_one_line(call("run", "-f", "/dev/zero"), "MiB")


@pytest.mark.parametrize("command", [["run", "x"], ["chat"], ["inspect"], ["bench"]], ids=" ".join)
def test_a_missing_bundle_is_named_with_the_remedy(command: list[str], tmp_path: Path) -> None:
    assert_one_line(call(*command, "-b", tmp_path / "nowhere"), "nowhere", "paceline export")


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert_one_line(call("run", "x", "-b", tmp_path), "manifest.json")


def _drop_name(manifest: dict[str, object]) -> None:
    del manifest["name"]


def _newer(manifest: dict[str, object]) -> None:
    manifest["schema"] = 99


def _unknown_key(manifest: dict[str, object]) -> None:
    manifest["plugin"] = "evil.so"


def _leave(manifest: dict[str, object]) -> None:
    manifest["files"] = {"target/../../secret": {"bytes": 1, "sha256": "0" * 64}}


@pytest.mark.parametrize(
    ("damage", "word"),
    [(_drop_name, "name"), (_newer, "upgrade"), (_unknown_key, "plugin"), (_leave, "secret")],
)
def test_a_wrong_manifest_is_refused(damage: object, word: str, tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    damage(manifest)  # type: ignore[operator]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_one_line(call("run", "x", "-b", folder), word)
    assert_one_line(call("inspect", "-b", folder), word)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": "1"}', '{"schema": ' + "9" * 5000 + "}", "[" * 100_000]
)
def test_a_manifest_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    (folder / "manifest.json").write_text(text)
    assert_one_line(call("run", "x", "-b", folder), "manifest.json")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    path = max((folder / "target").iterdir(), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    assert_one_line(call("run", "x", "-b", folder), path.name, "bytes")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    path = max((folder / "target").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_one_line(call("run", "x", "-b", folder), path.name, "damaged")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    (folder / "tokenizer.json").unlink()
    assert_one_line(call("run", "x", "-b", folder), "tokenizer.json", "missing")


def test_an_unknown_drafter_lists_the_names() -> None:
    assert_one_line(call("run", "x", "--drafter", "psychic"), "psychic", "lookup", "recycle", "none")
    assert_one_line(call("bench", "--drafters", "psychic"), "psychic", "lookup")
    assert_one_line(call("run", "x", "--drafter", "chan"), "'chan': did you mean chain? this bundle has")
    assert_one_line(call("bench", "--drafters", "lokup"), "did you mean lookup?")


def test_unknown_rule_device_and_token_are_refused() -> None:
    assert_one_line(call("run", "x", "--accept", "hopeful"), "hopeful", "coupled", code=2)
    assert_one_line(call("run", "x", "--device", "abacus"), "abacus", "cpu")
    assert_one_line(call("run", "x", "--ban", "99999999"), "99999999")
    assert_one_line(call("run", "x", "--logit-bias", "99999999=1"), "99999999")


def test_a_prompt_longer_than_the_context_names_both_numbers_and_the_remedy() -> None:
    done = call("run", "word " * 600, "-c", "64")
    assert_one_line(done, "64", "context", "shorten")


def test_wrong_bench_prompts_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": 3}\n')
    assert_one_line(call("bench", "--prompts", tmp_path / "p.jsonl"), "line 2")
    (tmp_path / "q.jsonl").write_text('{"prompt": "Hello"}\n{"prompt"\n')
    assert_one_line(call("bench", "--prompts", tmp_path / "q.jsonl"), "line 2")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert_one_line(call("bench", "--prompts", tmp_path / "empty.txt"), "no prompt")
    (tmp_path / "raw.txt").write_bytes(b"\xff\xff")
    assert_one_line(call("bench", "--prompts", tmp_path / "raw.txt"), "UTF-8")


def test_a_plot_that_cannot_be_written_is_told_before_measuring(tmp_path: Path) -> None:
    assert_one_line(call("bench", "--plot", tmp_path / "no" / "plot.png"), "no folder")


def test_a_suffix_store_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"no store at all")
    done = call("run", "x", "--drafter", "suffix", "--suffix-store", tmp_path / "store")
    assert_one_line(done, "store")


@pytest.mark.parametrize("command", ["lm", "distill"])
def test_a_training_that_cannot_be_is_refused_before_anything_takes_time(
    command: str, tmp_path: Path
) -> None:
    (good := tmp_path / "good.txt").write_text("Once upon a time there was a cat.\n" * 50)
    (zeros := tmp_path / "zeros.txt").write_bytes(b"abc\0" * 100)
    (latin := tmp_path / "latin.txt").write_bytes("Pl\xf6tzlich\n".encode("latin-1") * 50)
    (packed := tmp_path / "packed.jsonl.gz").write_bytes(b"no gzip")
    more = ["--target", tmp_path] if command == "distill" else []

    def refused(out: Path, text: str | Path, *words: str) -> None:
        done = call("train", command, out, *more, "--text", good, "--text", text)
        assert_one_line(done, *words)  # one line: no stage of the training came before it

    out = tmp_path / "out"
    refused(out, tmp_path / "none.txt", "no text file", "none.txt")
    refused(out, zeros, "zeros.txt is not text")
    refused(out, latin, "latin.txt is not UTF-8 text (byte 2)")
    refused(out, packed, "packed.jsonl.gz is no whole gzip file")
    refused(out, "", "names no file")
    refused(good, good, "good.txt is no folder")
    refused(good / "below", good, "good.txt is no folder")
    assert not out.exists()
    refused(copied_bundle(tmp_path), good, "is a bundle: name another folder")
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"")
    refused(out, good, "holds a model without a checkpoint")


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    complain("first\n  second")
    assert capsys.readouterr().err == "paceline: error: first second\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too wide"), "error: too wide\n"),
        (MemoryError(), "out of memory"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install 'paceline[export]'"),
        (
            ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"),
            "pip install 'paceline[plot]'",
        ),
        (KeyError("x"), "internal error: KeyError: 'x' (PACELINE_DEBUG=1"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)
def test_every_error_becomes_one_line(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert friendly_errors(fail) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_the_traceback_is_shown_to_who_asks_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_DEBUG", "1")
    assert friendly_errors(lambda: 1 // 0) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert friendly_errors(interrupt) == 130
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "paceline.main", "--version"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    assert done.returncode == 141

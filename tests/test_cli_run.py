"""`paceline run`: one answer to stdout, nothing else there."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BUNDLE, call

from paceline.runtime.ops import library

ASK = "Tell me a story about a dog and a red ball."
GREEDY = ("--temp", "0", "--repeat-penalty", "1")


def test_an_answer_is_all_that_stdout_carries() -> None:
    done = call("run", ASK, *GREEDY, "--max-tokens", "16")
    assert done.code == 0
    assert done.err == ""
    assert len(done.out) > 20
    assert done.out.endswith("\n")
    assert "tokens/s" not in done.out


def test_json_has_the_keys_that_were_promised() -> None:
    found = call("run", ASK, *GREEDY, "--max-tokens", "16", "--json", "--drafter", "chain").json()
    assert set(found) == {
        "text", "token_ids", "prompt_tokens", "finish_reason", "drafter", "seed", "stats"
    }  # fmt: skip
    promised = {
        "rounds", "drafted", "accepted", "tokens_per_round", "acceptance_rate", "accepted_by_depth",
        "seconds", "decode_tokens_per_second", "peak_rss_bytes", "planned_bytes", "devices",
        "cache",
    }  # fmt: skip
    assert promised <= set(found["stats"])
    assert set(found["stats"]["seconds"]) == {"load", "prefill", "draft", "verify", "judge", "wait", "total"}
    assert len(found["token_ids"]) == 16
    assert found["finish_reason"] == "length"
    assert found["drafter"] == "chain"
    assert found["stats"]["accepted"] + found["stats"]["rounds"] >= 16


def test_json_and_plain_output_are_the_same_text() -> None:
    plain = call("run", ASK, *GREEDY, "--max-tokens", "24")
    assert call("run", ASK, *GREEDY, "--max-tokens", "24", "--json").json()["text"] == plain.out.removesuffix(
        "\n"
    )


SAMPLED = ("--temp", "0.9", "--top-p", "0.95", "--seed", "11")


@functools.cache
def token_ids(drafter: str, sampling: tuple[str, ...]) -> tuple[int, ...]:
    found = call("run", ASK, "--json", "--max-tokens", "24", "--drafter", drafter, *sampling).json()
    return tuple(found["token_ids"])


@pytest.mark.parametrize("drafter", ["chain", "lookup,recycle", "auto"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_no_drafter_changes_the_answer(drafter: str, sampling: tuple[str, ...]) -> None:
    assert token_ids(drafter, sampling) == token_ids("none", sampling)


def test_another_seed_gives_another_answer() -> None:
    assert token_ids("none", SAMPLED) != token_ids("none", (*SAMPLED[:-1], "12"))


def test_a_drawn_seed_is_told_and_repeats_the_answer() -> None:
    sampling = ("run", ASK, "--json", "--max-tokens", "24", "--temp", "1")
    first = call(*sampling).json()
    again = call(*sampling, "--seed", str(first["seed"])).json()
    assert again["token_ids"] == first["token_ids"]


def test_argument_stdin_and_file_are_the_same_prompt(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text(ASK + "\n")
    answers = [
        call("run", ASK, *GREEDY, "--json", "--max-tokens", "8").json(),
        call("run", "-", *GREEDY, "--json", "--max-tokens", "8", stdin=ASK + "\n").json(),
        call("run", *GREEDY, "--json", "--max-tokens", "8", stdin=ASK + "\n").json(),
        call("run", BUNDLE, *GREEDY, "--json", "--max-tokens", "8", stdin=ASK + "\n").json(),
        call("run", *GREEDY, "-f", tmp_path / "ask.txt", "--json", "--max-tokens", "8").json(),
    ]
    assert len({(a["prompt_tokens"], tuple(a["token_ids"])) for a in answers}) == 1


def test_raw_text_is_continued_without_the_template() -> None:
    raw = call("run", "Once upon a time", "--raw", "--json", "--max-tokens", "8").json()
    asked = call("run", "Once upon a time", "--json", "--max-tokens", "8").json()
    assert raw["prompt_tokens"] < asked["prompt_tokens"]


def test_a_stop_text_ends_the_answer_before_it() -> None:
    whole = call("run", ASK, *GREEDY, "--json", "--max-tokens", "60").json()["text"]
    word = whole.split()[5]
    found = call("run", ASK, *GREEDY, "--json", "--max-tokens", "60", "--stop", word).json()
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole[: whole.index(word)]


def test_a_banned_token_never_appears() -> None:
    first = call("run", ASK, *GREEDY, "--json", "--max-tokens", "4").json()["token_ids"][0]
    found = call("run", ASK, *GREEDY, "--json", "--max-tokens", "24", "--ban", str(first)).json()
    assert first not in found["token_ids"]
    biased = call("run", ASK, *GREEDY, "--json", "--max-tokens", "4", "--logit-bias", f"{first}=-100").json()
    assert biased["token_ids"][0] != first


def test_statistics_go_to_stderr() -> None:
    done = call("run", ASK, *GREEDY, "--max-tokens", "16", "--drafter", "chain", "--stats", "full")
    assert "tokens/s" not in done.out
    for word in ("tokens/s", "drafter chain", "accepted by depth", "verify", "target on"):
        assert word in done.err
    assert max(map(len, done.err.splitlines())) <= 80


def test_inspect_and_devices_tell_what_runs() -> None:
    found = call("inspect", "--json").json()
    assert found["target"]["architecture"] == "llama"
    assert found["bytes"] == sum(f["bytes"] for f in found["files"].values())
    shown = call("inspect")
    assert shown.code == 0
    assert found["licence"] in shown.out
    assert max(map(len, shown.out.splitlines()[1:])) <= 80
    devices = call("devices", "--json").json()
    assert devices["devices"][0]["name"] == "cpu"
    assert call("devices").out.count("cpu") >= 1
    used = devices["kernels"]["in_use"]
    assert used == found["kernels"]
    assert used in " ".join(shown.out.split())
    if devices["kernels"]["level"] is None:
        assert used.startswith("ONNX function bodies: ")
    else:
        assert used == f"native ({devices['kernels']['level']})"
        assert devices["kernels"]["level"] in devices["kernels"]["levels"]


def test_kernels_can_be_switched_off_and_a_wrong_name_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def devices(value: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("PACELINE_KERNELS", value)
        command = [sys.executable, "-m", "paceline.main", "devices"]
        return subprocess.run(command, capture_output=True, text=True)

    assert "ONNX function bodies: PACELINE_KERNELS=none" in devices("none").stdout
    if library.available():
        wrong = devices("no such level")
        assert wrong.returncode == 1
        assert len(wrong.stderr.splitlines()) == 1
        assert "portable" in wrong.stderr


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "paceline.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


ENDLESS = ("run", "--raw", "Once", "--ban", "0", "--ban", "3", "--drafter", "none", "--overflow", "slide")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_with_130_and_keeps_what_came() -> None:
    with started(*ENDLESS) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.read(1)
        run.send_signal(signal.SIGINT)
        assert run.stderr.read() == ""
        assert run.wait(20) == 130


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    with started(*ENDLESS) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.read(1)
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait(20) == 141


def test_the_python_api_tells_the_same_story() -> None:
    import paceline

    told = call("run", "Once upon a time", "--raw", *GREEDY, "--json", "--max-tokens", "12").json()
    with paceline.load() as session:
        events = list(session.generate("Once upon a time", max_tokens=12, sampling=paceline.Sampling()))
    assert [e.token for e in events if e.token is not None] == told["token_ids"]
    assert "".join(e.text for e in events) == told["text"]
    assert events[-1].finish_reason == "length"


@pytest.mark.slow
@pytest.mark.export
def test_a_trained_model_and_its_drafter_are_exported_and_tell_something(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    text = tmp_path / "stories.txt"
    names = ("Tom", "Mia", "Ben", "Lily", "Sam")
    stories = [
        f"Once upon a time {names[i % 5]} had a {thing}. The {thing} was {colour}. Day {i} was good."
        for i in range(200)
        for thing, colour in (("ball", "red"), ("kite", "blue"), ("boat", "green"))
    ]
    text.write_text("<|endoftext|>".join(stories))
    small = ("--hidden", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--ffn", "32")
    usual = ("--text", text, "--batch", "4", "--epochs", "0.5", "--threads", "1")
    teller, drafter, bundle = tmp_path / "teller", tmp_path / "drafter", tmp_path / "bundle"
    assert call("train", "lm", teller, *usual, *small, "--vocab", "300", "--context", "64").code == 0
    assert call("train", "distill", drafter, "--target", teller, *usual, *small, "--tokens", "1000").code == 0
    assert call("export", teller, bundle, "--drafter", f"small={drafter}", "--quiet").code == 0
    again = ("train", "lm", tmp_path / "more", *usual, "--from", bundle)
    refused = call(*again, "--hidden", "32")
    assert refused.code == 2
    assert "the weights have 16" in refused.err
    assert call(*again, "--epochs", "0").code == 0
    was, now = (load_file(folder / "model.safetensors") for folder in (teller, tmp_path / "more"))
    assert all((was[name] == now[name]).all() for name in was)
    plain = call("run", "Once", "-b", bundle, "--json", "--max-tokens", "20", "--drafter", "none").json()
    drafted = call("run", "Once", "-b", bundle, "--json", "--max-tokens", "20", "--drafter", "chain").json()
    assert drafted["token_ids"] == plain["token_ids"]

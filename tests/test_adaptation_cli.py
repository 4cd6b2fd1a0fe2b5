"""Learning from use at the command line: what is asked for wrongly, and what a chat shows and forgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from adaptable import RANK, adaptable_bundle, checkpoints, plain_bundle, predicting_bundle
from command_line import BUNDLE, call, refused_in_one_line

import paceline
from paceline.chat_commands import perform
from paceline.runtime.loading import load
from paceline.runtime.manifest import read_manifest
from paceline.runtime.part import Schedule


def test_wrong_orders_are_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--adapt needs --profile cpu" in refused_in_one_line(
        "export", checkpoints()[1], out, "--adapt", "4", "--profile", "portable"
    )
    assert "65" in refused_in_one_line("export", plain_bundle(), out, "--adapt", "65")
    assert "--quant cannot change" in refused_in_one_line(
        "export", plain_bundle(), out, "--adapt", "4", "--quant", "int8"
    )
    assert "has adapters already" in refused_in_one_line(
        "export", adaptable_bundle(), out, "--adapt", "4", "-q"
    )
    assert "--predictor is for --adapt RANK" in refused_in_one_line(
        "export", plain_bundle(), out, "--predictor", "joint", "--taps", "hidden"
    )
    assert "and there is none at" in refused_in_one_line(
        "export", checkpoints()[1], out, "--adapt", "4", "--predictor", "joint"
    )
    assert "maybe" in refused_in_one_line("run", "--adapt", "maybe", "x")
    assert not out.exists()


def test_a_run_says_the_same_and_keeps_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    asked = (
        "run",
        "-b",
        adaptable_bundle(),
        "--raw",
        "--drafter",
        "chain",
        "-n",
        "60",
        "--temp",
        "0",
        "the cat",
    )
    plain = call(*asked)
    assert not (tmp_path / "adapters").exists()
    assert call(*asked, "--adapt", "on").out == plain.out
    assert "--adapt on" not in call(*asked, "--adapt", "on").err


def test_where_nobody_can_learn_adapt_on_says_so() -> None:
    asked = ("run", "-n", "4", "--adapt", "on", "Hello")
    for drafter in ("chain", "lookup", "none"):
        done = call(*asked, "--drafter", drafter)
        assert done.code == 0
        assert f"--adapt on is not used: {drafter} runs no draft model" in " ".join(done.err.split())
    with pytest.warns(UserWarning, match="adapt is not used: chain runs no draft model here that can learn"):
        paceline.load(drafter="chain", adapt="on").close()


@pytest.mark.parametrize("onto", ["model", "bundle"])
def test_a_draft_model_gets_adapters_in_the_export_that_adds_it(tmp_path: Path, onto: str) -> None:
    target, draft = checkpoints()
    model = target
    if onto == "bundle":
        call("export", target, model := tmp_path / "target", "-q")
    done = call("export", model, tmp_path / "made", "--drafter", f"draft={draft}", "--adapt", "4")
    assert done.code == 0, done.err
    assert "draft: learns with --adapt on" in done.out
    made, usual = read_manifest(tmp_path / "made"), read_manifest(adaptable_bundle())
    part = made.drafters["draft"]
    assert made.target.training is None
    assert part.adapters.keys() == usual.drafters["draft"].adapters.keys()
    assert [shape[1] for name, shape in part.adapters.items() if name.endswith(".b")] == [4] * 3
    with load(tmp_path / "made", drafter="chain", adapt="on") as session:
        session.generate([5, 6, 7, 8], max_tokens=20).read()
        assert [learned.name for learned in session.learner.learned()] == ["draft"]


def test_a_model_alone_gets_them_itself(tmp_path: Path) -> None:
    done = call("export", checkpoints()[1], tmp_path / "made", "--adapt", "4")
    assert "target: learns with --adapt on" in done.out, done.err


def test_inspect_shows_adapters_and_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    part = read_manifest(adaptable_bundle()).drafters["draft"]
    shown = " ".join(call("inspect", adaptable_bundle()).out.split())
    assert f"adapters of rank {RANK}, {part.adapter_bytes / 1e3:,.0f} kB, on 32 x 32, " in shown
    assert "and the LM head of 32 x 320; a step is drafters/draft/adapt.onnx" in shown
    assert "learnt nothing yet for this target" in shown
    with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
        session.generate([5, 6, 7, 8], max_tokens=60).read()
        session.learner.wait(60)
        [learned] = session.learner.learned()
    told = call("inspect", adaptable_bundle(), "--json").json()["learnt"]["draft"]
    assert told["steps"] == learned.steps > 0
    [file] = tmp_path.glob("adapters/*.adapters")
    assert (told["file"], told["bytes"]) == (str(file), file.stat().st_size)
    assert f"{learned.steps:,} steps" in " ".join(call("inspect", adaptable_bundle()).out.split())
    file.write_bytes(b"x" * 100)
    assert "is damaged" in " ".join(call("inspect", adaptable_bundle()).out.split())
    assert "learns" not in call("inspect", plain_bundle()).out


@pytest.mark.parametrize("schedule", ["joint", "interleaved"])
def test_inspect_shows_what_predicts_acceptance(schedule: Schedule) -> None:
    shown = " ".join(call("inspect", predicting_bundle(schedule)).out.split())
    assert f"and the LM head of 32 x 320; when a chain ends it learns, too ({schedule}); a step is" in shown


class Screen:
    def __init__(self) -> None:
        self.said: list[str] = []

    def tell(self, text: str, hang: str = "") -> None:
        self.said.append(text)

    note = tell


def test_a_chat_shows_and_forgets_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    for expected in ("kept when the session ends", "kB in"):
        with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
            session.generate([5, 6, 7, 8], max_tokens=60).read()
            session.learner.wait(60)
            chat = type("Chat", (), {"session": session, "screen": Screen()})()
            perform(chat, "/adapt")
            assert chat.screen.said[0].startswith("draft: ")
            assert " steps in " in chat.screen.said[0]
            assert expected in chat.screen.said[2]
    [file] = tmp_path.glob("adapters/*.adapters")
    with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
        chat = type("Chat", (), {"session": session, "screen": Screen()})()
        perform(chat, "/forget")
        assert not file.exists()
        perform(chat, "/adapt")
        assert "draft: 0 steps" in chat.screen.said[1]
    assert not file.exists(), "what was forgotten is not written when the session ends"


def test_a_chat_where_nobody_learns_says_how() -> None:
    done = call("chat", "-b", BUNDLE, stdin="/adapt\n")
    assert done.code == 0
    assert "no draft model learns here" in done.out


def test_a_chat_where_nobody_learns_does_not_claim_to_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    (kept := tmp_path / "adapters" / "one.adapters").parent.mkdir()
    kept.write_bytes(b"what another session learnt")
    done = call("chat", "-b", BUNDLE, stdin="/forget\n")
    assert done.code == 1
    assert (
        f"nothing to forget: start with --adapt on and the same bundles, or delete {kept.parent}"
        in " ".join((done.out + done.err).split())
    )
    assert kept.exists()


def test_a_bench_asks_with_and_without_learning_and_draws_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learnt before is neither used nor changed, and answers are the same."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
        session.generate([5, 6, 7, 8], max_tokens=60).read()
        session.learner.wait(60)
    [file] = tmp_path.glob("cache/adapters/*.adapters")
    before, picture = file.read_bytes(), tmp_path / "curve.svg"
    asked = ("--drafters", "chain,lookup", "--max-tokens", "30", "--limit", "3", "--plot", picture)
    done = call("bench", "-b", adaptable_bundle(), "--adapt", "on", "--json", *asked)
    rows = done.json()["rows"]
    assert {row["drafter"] for row in rows} == {"none", "none again", "chain", "lookup", "chain off"}
    assert all(row["identical"] for row in rows)
    text = picture.read_text()
    for words in ("chain, learning", "chain, not learning", "tokens a round"):
        assert f"<!-- {words} -->" in text
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--drafters", "lookup"], "none of lookup can learn"),
        (["--record"], "is not written into the bundle"),
        (["--memory", "1GB"], "compared with themselves"),
    ],
)
def test_a_bench_of_learning_that_makes_no_sense_is_refused(more: list[str], why: str) -> None:
    done = call("bench", "-b", adaptable_bundle(), "--adapt", "on", *more)
    assert done.code != 0
    assert why in " ".join(done.err.replace("│", " ").split())

"""Learning from use at the command line: what is asked for wrongly, and what a chat shows and forgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from adaptable import adaptable_bundle, checkpoints, plain_bundle
from command_line import BUNDLE, call, refused_in_one_line

import paceline
from paceline.chat_commands import perform


def test_wrong_orders_are_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--adapt is for a bundle that is finished, and there is none at" in refused_in_one_line(
        "export", checkpoints()[1], out, "--adapt", "4"
    )
    assert "65" in refused_in_one_line("export", plain_bundle(), out, "--adapt", "65")
    assert "--quant cannot change" in refused_in_one_line(
        "export", plain_bundle(), out, "--adapt", "4", "--quant", "int8"
    )
    assert "has adapters already" in refused_in_one_line(
        "export", adaptable_bundle(), out, "--adapt", "4", "-q"
    )
    assert "maybe" in refused_in_one_line("run", "--adapt", "maybe", "x")
    assert "leave --memory or --adapt on out" in refused_in_one_line(
        "run", "--adapt", "on", "--memory", "2GB", "x"
    )
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


def test_inspect_says_who_can_learn() -> None:
    assert "learns     with --adapt on, adapters of " in call("inspect", adaptable_bundle()).out
    assert "learns" not in call("inspect", plain_bundle()).out


def test_where_nobody_can_learn_adapt_on_says_so() -> None:
    asked = ("run", "-n", "4", "--adapt", "on", "Hello")
    for drafter in ("chain", "lookup"):
        done = call(*asked, "--drafter", drafter)
        assert done.code == 0
        assert f"--adapt on is not used: {drafter} runs no draft model" in " ".join(done.err.split())
    assert "--adapt" not in call(*asked, "--drafter", "none").err
    with pytest.warns(UserWarning, match="adapt is not used: chain runs no draft model here that can learn"):
        paceline.load(drafter="chain", adapt="on").close()


class Screen:
    def __init__(self) -> None:
        self.said: list[str] = []

    def tell(self, text: str, hang: str = "") -> None:
        self.said.append(text)

    note = tell


def test_a_chat_shows_and_forgets_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.runtime.loading import load

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

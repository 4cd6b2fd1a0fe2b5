"""Nothing is silent: full contexts, cut answers, lowered contexts, messages that a template leaves out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import Done, call, copied_bundle
from terminal import Terminal, needs_terminal

import paceline
from paceline.chat_screen import Screen
from paceline.chat_settings import Settings
from paceline.conversation import Conversation
from paceline.stats_text import length_words
from paceline.transcript import Transcript, save

CAT, DOG, BIRD = (f"Tell me a story about a {animal}." for animal in ("cat", "dog", "bird"))
ENDLESS = ("--ban", "0", "--ban", "3", "--temp", "0")


def spoken(*turns: int) -> tuple[dict[str, str], ...]:
    """Turns whose messages have so many words."""
    return tuple(
        {"role": role, "content": f"turn {number} " + "word " * words}
        for number, words in enumerate(turns)
        for role in ("user", "assistant")
    )


def chat(folder: Path, turns: tuple[dict[str, str], ...], *arguments: str, script: str) -> Done:
    """A chat of 256 tokens that begins with saved turns."""
    file = folder / "saved.json"
    save(file, Transcript(None, turns))
    return call("chat", "-c", "256", "--max-tokens", "8", *arguments, stdin=f"/load {file}\n{script}")


def test_the_oldest_turns_leave_a_full_context_and_it_is_said_once(tmp_path: Path) -> None:
    done = chat(tmp_path, spoken(40, 40, 40), script=f"{CAT}\n{DOG}\n/history\n/stats\n")
    assert done.code == 0
    assert done.err.count("the oldest turns are left out from here on") == 1
    assert done.err.count("\n") == 1
    assert done.out.count("you: ") == 5  # what was said stays in the history
    tokens = int(" ".join(done.out.split()).partition("prompt of ")[2].split()[0])
    assert 40 < tokens < 256


def test_only_whole_turns_leave_and_the_system_prompt_stays(tmp_path: Path) -> None:
    bundle = with_template(tmp_path, SYSTEM)
    with paceline.load(bundle, context=256) as session:
        held = Conversation(session, Settings(session.defaults, max_tokens=8), "Be kind.", Screen(False))
        held.messages += spoken(40, 40, 40)
        asked: list[list[dict[str, str]]] = []
        real = session.chat

        def watched(messages: list[dict[str, str]], **choices: object) -> object:
            asked.append(messages)
            return real(messages, **choices)  # type: ignore[arg-type]

        session.chat = watched  # type: ignore[method-assign, assignment]
        held.answer(CAT)
    (messages,) = asked
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert [m["role"] for m in messages[1:]] == ["user", "assistant"] * ((len(messages) - 2) // 2) + ["user"]
    assert 1 < len(messages) < 8
    assert messages[-1]["content"] == CAT


def test_a_chat_that_stops_refuses_and_says_what_helps(tmp_path: Path) -> None:
    script = f"{CAT}\n/set overflow slide\n{CAT}\n/history\n"
    done = chat(tmp_path, spoken(70, 70), "--overflow", "stop", script=script)
    refusal, told, *more = done.err.splitlines()
    assert "the context of 256 tokens is full: /clear begins anew, /set overflow slide goes on" in refusal
    assert "the oldest turns are left out" in told
    assert not more
    assert done.out.count(f"you: {CAT}") == 1


def test_a_message_too_long_for_any_context_loses_no_turn(tmp_path: Path) -> None:
    done = chat(tmp_path, spoken(5), script=f"{'word ' * 400}\n{CAT}\n/stats\n")
    assert done.err.count("\n") == 1
    assert "the context holds 256" in done.err
    tokens = int(" ".join(done.out.split()).partition("prompt of ")[2].split()[0])
    assert tokens > 25  # the turn that was there before is still asked with


def test_a_run_that_the_context_cut_says_so(tmp_path: Path) -> None:
    usual = ("run", "--raw", "Once", *ENDLESS, "--drafter", "none")
    cut = call(*usual, "-c", "32")
    assert cut.code == 0
    assert cut.err.count("\n") == 1
    assert "cut: the context of 32 tokens is full (" in cut.err
    assert "a larger --context" in cut.err
    assert call(*usual, "-n", "5").err == ""  # that was asked for
    assert "larger --context" not in call(*usual).err  # the model has no larger one


def test_a_piped_chat_that_the_context_cut_says_so() -> None:
    done = call("chat", "-c", "48", *ENDLESS, stdin=f"{CAT}\n")
    assert done.code == 0
    assert "cut: the context of 48 tokens is full" in done.err


@needs_terminal
def test_the_limit_that_cut_is_named_truthfully(tmp_path: Path) -> None:
    with Terminal("chat", "-c", "64", *ENDLESS, PACELINE_CACHE=str(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type(f"/set max-tokens 5\r{CAT}\r")
        screen.until("cut after 5 tokens, the limit of /set max-tokens")
        screen.type("/clear\r/set max-tokens none\r")
        screen.until("max-tokens is now none")
        screen.type(f"{CAT}\r")
        screen.until("cut: the context of 64 tokens is full")


def test_both_limits_at_once_are_the_one_that_was_set() -> None:
    stats = paceline.Statistics(prompt_tokens=4, generated_tokens=6)
    assert not length_words(stats, 6, 10, "--max-tokens").by_context
    assert length_words(stats, 7, 10, "--max-tokens").by_context
    assert length_words(stats, None, 10, "--max-tokens").by_context


@pytest.mark.parametrize("command", [("run", "Once", "-n", "2"), ("plan",), ("chat",)])
def test_a_context_beyond_the_models_is_said(command: tuple[str, ...]) -> None:
    done = call(*command, "-c", "4096")
    assert done.code == 0
    assert "--context 4096 is more than this model has: the context is 512" in done.err
    assert done.err.count("\n") == 1
    assert call(*command, "-c", "100").err == ""


SYSTEM = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' }}{{ m.content }}<|end|>{% endfor %}<|assistant|>"
BARE = "{% for m in messages if m.role != 'system' %}{{ m.content | upper }}{% endfor %}<|assistant|>"
PICKY = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    "{{ messages[-1].content }}"
)


def with_template(folder: Path, template: str) -> Path:
    """The storyteller with another chat template."""
    bundle = copied_bundle(folder)
    file, manifest = bundle / "chat_template.jinja", bundle / "manifest.json"
    file.write_text(template)
    found, raw = json.loads(manifest.read_text()), template.encode()
    found["files"][file.name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    manifest.write_text(json.dumps(found))
    return bundle


@pytest.mark.parametrize(("template", "left_out"), [(SYSTEM, []), (BARE, ["system"]), (PICKY, [])])
def test_a_system_prompt_that_a_template_leaves_out_is_told(
    template: str, left_out: list[str], tmp_path: Path
) -> None:
    bundle = with_template(tmp_path, template)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    with paceline.load(bundle) as session:
        assert session.left_out(messages) == left_out
        assert len(session.chat_tokens(messages)) > 3
    usual = ("-b", bundle, "-s", "Be kind.", "-n", "2")
    told = [call("run", "Hello", *usual).err, call("chat", *usual, stdin="Hello\nHello\n").err]
    assert [line.count("the system prompt is left out") for line in told] == [len(left_out)] * 2


def test_messages_of_a_role_that_a_template_does_not_know_are_told() -> None:
    messages = [{"role": "user", "content": CAT}, {"role": "tool", "content": "42"}]
    with paceline.load() as session:
        assert session.left_out(messages) == ["tool"]
        assert session.left_out(messages[:1]) == []
        assert session.left_out([{"role": "system", "content": "Be kind."}]) == ["system"]


def test_greedy_regeneration_is_the_same_and_says_so(tmp_path: Path) -> None:
    with Terminal("chat", "-n", "3", "--temp", "0", PACELINE_CACHE=str(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type(f"{CAT}\r")
        screen.until("tokens/s")
        screen.until(">>> ")
        screen.type("/regen\r")
        screen.until("greedy gives the same answer again")


def test_a_huge_loaded_chat_costs_a_few_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    with paceline.load(context=256) as session:
        held = Conversation(session, Settings(session.defaults, max_tokens=4), None, Screen(False))
        held.messages += spoken(*(number % 40 for number in range(2000)))
        real, sizes = session.chat_tokens, list[int]()

        def counted(messages: list[dict[str, str]], **values: object) -> Sequence[int]:
            sizes.append(len(messages))
            return real(messages, **values)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "chat_tokens", counted)
        held.answer(CAT)
        kept = sizes[-1]
        everything = [*held.messages[:-1]]
        assert len(real(everything[-kept:])) <= 128 < len(real(everything[-kept - 2 :]))
    assert len(sizes) <= 15
    assert sum(sizes) < 3 * len(everything)


def test_a_template_that_cannot_be_read_is_named_where_it_would_be_used(tmp_path: Path) -> None:
    bundle = with_template(tmp_path, "{% for %}")
    usual = ("-b", bundle, "--temp", "0", "-n", "5")
    raw, asked = call("run", "A cat", "--raw", *usual), call("run", "A cat", *usual)
    assert (raw.code, raw.err) == (0, "")
    assert (asked.code, asked.out) == (0, raw.out)
    failed = [asked, call("run", "A cat", "-s", "Be kind.", *usual), call("chat", *usual, stdin="A cat\n")]
    assert [done.code for done in failed] == [0, 1, 1]
    for done in failed:
        assert done.err.count("\n") == 1
        assert "the chat template cannot be read: line 1: Expected an expression" in done.err
    assert "raw text" in asked.err


@pytest.mark.parametrize("template", ["", "{# nothing #}", "{{ '' }}"])
def test_a_template_that_writes_nothing_is_named(template: str, tmp_path: Path) -> None:
    bundle = with_template(tmp_path, template)
    for done in (call("run", "A cat", "-b", bundle), call("chat", "-b", bundle, stdin="A cat\n")):
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        assert "the chat template writes nothing for these messages" in done.err
    assert call("run", "A cat", "-b", bundle, "--raw", "-n", "3").code == 0

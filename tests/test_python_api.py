"""The public names: typed for checkers, one base of errors, and misuse named at the call in plain words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from storybook import session

import paceline
from paceline import Sampling

ROOT = Path(__file__).parents[1]
ASK = {"role": "user", "content": "Tell me a story about a cat and a big cake."}


@pytest.fixture(autouse=True)
def fresh() -> None:
    session().reset()


def test_every_error_for_a_caller_is_an_error_of_paceline() -> None:
    for name in ("ArgumentError", "BudgetError", "BundleError", "DeviceError", "LogitsError"):
        assert issubclass(getattr(paceline, name), paceline.Error)
    assert issubclass(paceline.ArgumentError, ValueError)
    assert issubclass(paceline.LogitsError, RuntimeError)


MISUSE: dict[str, tuple[Callable[[], object], str]] = {
    "a text as chat": (lambda: session().chat("hello"), "messages are a list"),  # type: ignore[arg-type]
    "no messages": (lambda: session().chat(None), "messages are a list"),  # type: ignore[arg-type]
    "a message that is text": (lambda: session().chat(["hello"]), "needs a 'role'"),  # type: ignore[list-item]
    "a content that is a number": (
        lambda: session().chat([{"role": "user", "content": 5}]),
        "needs a 'role'",
    ),
    "an image": (
        lambda: session().chat([{"role": "user", "content": [{"type": "image", "url": "x"}]}]),
        "a part of a content",
    ),
    "no prompt": (lambda: session().generate(None), "text or a list of token ids"),  # type: ignore[arg-type]
    "half a token": (lambda: session().generate([1.5]), "whole number"),  # type: ignore[list-item]
    "a token too many": (lambda: session().generate([10**6]), "outside the vocabulary"),
    "choices as a dict": (
        lambda: session().generate("One day", sampling={"temperature": 1}),  # type: ignore[arg-type]
        r"Sampling\(temperature",
    ),
    "a rule nobody knows": (lambda: session().generate("One day", accept="never"), "unknown acceptance rule"),
    "one stop string": (lambda: session().generate("One day", stop="x"), "list of strings"),
    "a stop that is no text": (lambda: session().generate("One day", stop=[5]), "must be text"),  # type: ignore[list-item]
    "a drafter that is a number": (lambda: session().set_drafter(5), "named by a word"),  # type: ignore[arg-type]
    "a number to encode": (lambda: session().encode(5), "a text is needed"),  # type: ignore[arg-type]
    "a token beyond all to decode": (lambda: session().decode([10**6]), "outside the vocabulary"),
    "no stop": (lambda: session().generate("One day", stop=None), "list of strings, not None"),  # type: ignore[arg-type]
    "bytes as a prompt": (lambda: session().generate(b"abc"), "text or a list of token ids, not bytes"),
    "yes as a number": (
        lambda: session().generate("One day", max_tokens=True),
        "max_tokens must be a whole number",
    ),
    "yes as a count": (
        lambda: session().generate("One day", logprobs=True),
        "logprobs must be a whole number",
    ),
    "yes as a seed": (lambda: session().generate("One day", seed=True), "seed must be a whole number"),
    "tools that are text": (lambda: session().chat([ASK], tools="x"), "tools are a list"),  # type: ignore[arg-type]
    "tools that are words": (lambda: session().chat([ASK], tools=["x"]), "tools are a list"),  # type: ignore[list-item]
    "thinking in words": (lambda: session().chat([ASK], enable_thinking="yes"), "enable_thinking is True"),  # type: ignore[arg-type]
    "a variable without a name": (
        lambda: session().chat([ASK], template_values={1: 2}),  # type: ignore[dict-item]
        "a name that is text, not 1",
    ),
    "variables that are text": (
        lambda: session().chat([ASK], template_values="x"),  # type: ignore[arg-type]
        "variables by their names",
    ),
    "a scope nobody knows": (lambda: paceline.load(memory_scope="zz"), "memory_scope is growth or process"),  # type: ignore[arg-type]
    "a store in no folder": (lambda: paceline.load(suffix_store="/nowhere/x"), "there is no folder /nowhere"),
    "a bundle that is a number": (lambda: paceline.load(5), "must be a path"),  # type: ignore[arg-type]
    "a cache that is a number": (lambda: paceline.load(cache=8), "cache must be a name"),  # type: ignore[arg-type]
    "a device that is a number": (lambda: paceline.load(device=0), "device must be a name"),  # type: ignore[arg-type]
    "a tree nobody knows": (lambda: paceline.load(tree="tall"), "tree is dynamic or static"),  # type: ignore[arg-type]
    "an overflow nobody knows": (lambda: paceline.load(overflow="stay"), "overflow is stop or slide"),  # type: ignore[arg-type]
    "a context of nothing": (lambda: paceline.load(context=0), "context must be"),
    "no device": (lambda: paceline.load(device=None), "device must be a name, not None"),  # type: ignore[arg-type]
    "no drafter": (lambda: paceline.load(drafter=None), "drafter must be a name, not None"),  # type: ignore[arg-type]
    "a bundle without a name": (lambda: paceline.load(""), "bundle is an empty text"),
    "a store without a name": (lambda: paceline.load(suffix_store=""), "suffix_store is an empty text"),
    "nowhere to save": (lambda: session().save(None), "must be a path, not None"),  # type: ignore[arg-type]
    "an empty name to save": (lambda: session().save(""), "is an empty text"),
    "nothing to restore": (lambda: session().restore(None), "must be a path, not None"),  # type: ignore[arg-type]
    "memory that is a list": (lambda: paceline.load(memory=[1]), "memory is a size"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "1", "temperature is '1'"),
        ("temperature", None, "temperature is None"),
        ("top_k", True, "top_k is True"),
        ("logit_bias", None, "logit_bias is None: it must be a mapping"),
        ("logit_bias", {5: "1"}, "logit_bias of token 5 is '1'"),
        ("banned", 5, "banned is 5: it must be a set"),
        ("not_before", [5], "not_before is"),
        ("not_before", {5: "1"}, "not_before of token 5 is '1'"),
        ("phrases", {5: 1.0}, "a phrase is 5"),
        ("phrases", {(5, 6): None}, "the bias of the phrase"),
        ("phrases", {(5, "a"): 1.0}, "a token of phrases is 'a'"),
    ],
)
def test_a_choice_of_a_wrong_type_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(paceline.ArgumentError, match=message) as raised:
        session().generate("One day", sampling=Sampling(**{name: value}))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", MISUSE)
def test_misuse_is_named_at_the_call(what: str) -> None:
    act, message = MISUSE[what]
    with pytest.raises(paceline.ArgumentError, match=message) as raised:
        act()
    assert "\n" not in str(raised.value)


def test_a_full_context_is_explained_for_python_too() -> None:
    with pytest.raises(paceline.Error, match=r'overflow="slide"'):
        session().generate([5] * 600)


def test_the_defaults_of_the_bundle_are_there_to_build_on() -> None:
    s = session()
    own = s.generate("One day", max_tokens=16).read().tokens
    assert s.generate("One day", max_tokens=16, sampling=s.defaults).read().tokens == own
    warmer = replace(s.defaults, temperature=0.8)
    assert warmer.frequency_penalty == s.defaults.frequency_penalty
    assert s.defaults != Sampling()


def test_texts_and_tokens_turn_into_each_other() -> None:
    ids = session().encode("Once upon a time")
    assert session().decode(ids) == "Once upon a time"
    by_text = session().generate("Once upon a time", max_tokens=8, sampling=Sampling()).read()
    assert session().generate(ids, max_tokens=8, sampling=Sampling()).read().tokens == by_text.tokens


def test_a_content_in_parts_is_its_text() -> None:
    parts = [{"type": "text", "text": "Tell me a story"}, {"type": "text", "text": "about a cat."}]
    joined = {"role": "user", "content": "Tell me a story\nabout a cat."}
    whole = session().chat([joined], max_tokens=12, sampling=Sampling()).read().tokens
    told = session().chat([{"role": "user", "content": parts}], max_tokens=12, sampling=Sampling()).read()
    assert told.tokens == whole


def test_a_session_says_what_it_is() -> None:
    session().generate("One day", max_tokens=4).read()
    assert repr(session()).startswith("<Session of storyteller, drafter ")
    assert "of 512 tokens" in repr(session()) or "of 1024 tokens" in repr(session())
    with paceline.load(drafter="none") as other:
        pass
    assert "closed" in repr(other)


PROGRAM = """
import asyncio
from dataclasses import replace

import paceline


def whole(session: paceline.Session) -> str:
    answer = session.chat([{"role": "user", "content": "Hello"}], max_tokens=8, logprobs=2)
    for event in answer:
        text: str = event.text
        token: int | None = event.token
    tokens: list[int] = answer.tokens
    return answer.read().text


async def beside(session: paceline.Session) -> None:
    async for event in session.achat([{"role": "user", "content": "Hello"}], max_tokens=8):
        print(event.text)
    async for event in session.agenerate("Hello", seed=3):
        print(event.logprob)


try:
    with paceline.load("bundle", drafter="chain", memory="900MB", cache="fp16") as session:
        warmer = replace(session.defaults, temperature=0.7)
        print(whole(session), session.generate([1, 2], sampling=warmer).stats.tokens_per_round)
        asyncio.run(beside(session))
except paceline.BudgetError as error:
    print(error)
except paceline.Error as error:
    print(error)
"""
WRONG = {
    "paceline.load(contxt=5)": "contxt",
    'paceline.load(context="5")': "context",
    'paceline.load(overflow="stay")': "overflow",
    "paceline.load().generate(None)": "generate",
    'paceline.load().chat("hello")': "chat",
    "paceline.load().chat([], max_token=5)": "max_token",
    'paceline.load().achat([], max_tokens="5")': "max_tokens",
    'paceline.load().generate("x", sampling={})': "sampling",
    'paceline.load().generate("x").text + 1': "operand",
}


def checked(program: str, tmp_path: Path) -> str:
    """What mypy says about a program that imports the package in its installed shape."""
    shape = tmp_path / "site" / "paceline"
    shape.mkdir(parents=True)
    for file in (ROOT / "apps").iterdir():
        (shape / file.name).symlink_to(file)
    for room in ("export", "runtime", "memory"):
        (shape / room).symlink_to(ROOT / room)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--follow-imports", "silent"]
    command += ["--ignore-missing-imports", "--cache-dir", str(ROOT / ".mypy_cache" / "programs")]
    ran = subprocess.run(
        [*command, "program.py"], cwd=tmp_path, env={"MYPYPATH": str(shape.parent), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.stdout + ran.stderr


@pytest.mark.slow
def test_mypy_passes_a_right_program_and_finds_every_mistake_of_a_wrong_one(tmp_path: Path) -> None:
    assert (ROOT / "apps" / "py.typed").is_file()
    said = checked(PROGRAM, tmp_path)
    assert said.startswith("Success"), said
    lines = "import paceline\n" + "\n".join(WRONG) + "\n"
    (tmp_path / "wrong").mkdir()
    said = checked(lines, tmp_path / "wrong")
    for number, (line, word) in enumerate(WRONG.items(), 2):
        found = [found for found in said.splitlines() if found.startswith(f"program.py:{number}: error")]
        assert found, (line, said)
        assert word in found[0], found[0]


def test_a_context_that_the_model_does_not_have_is_told() -> None:
    most = session().bundle.manifest.target.context
    with pytest.warns(UserWarning, match=f"context={most + 1} is .* the context is {most} tokens") as told:
        paceline.load(context=most + 1, drafter="none").close()
    assert told[0].filename == __file__
    paceline.load(context=most, drafter="none").close()


@pytest.mark.parametrize("banned", [[5], (5,), {5}, frozenset({5}), {5: 1}.keys()])
def test_banned_tokens_may_come_in_any_collection(banned: Collection[int]) -> None:
    choice = Sampling(banned=banned)  # type: ignore[arg-type]
    assert session().generate("One day", max_tokens=3, sampling=choice).read().tokens

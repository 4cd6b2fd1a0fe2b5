from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from chat_families import CHATML, FAMILIES, QWEN3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CONTROLS, KINDS, SEEN, folder_of
from tokenizers import AddedToken

from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.template.marked import Marked
from paceline.runtime.text.chat import ChatText
from paceline.runtime.text.text import Text

RULES = ("normalized", "lstrip", "rstrip", "single_word")
WORDS = [*CONTROLS, *SEEN, "<s>", "</s>", "<think>", "\n", "  ", " ", "é", "\ue0f0", "[X]", "\ud800", "日本"]
CONTENT = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=5).map("".join)
# What a chat does between two turns: goes on, answers again, changes something said earlier, starts anew.
STEP = st.tuples(st.sampled_from(["on", "on", "on", "again", "edit", "anew"]), CONTENT, CONTENT)


@cache
def text_of(kind: str, rule: str = "") -> Text:
    """A tokenizer; with a rule its chat tokens follow it."""
    tokenizer = KINDS[kind]()
    if rule:
        for name in ("<|im_start|>", "<|im_end|>", "[X]"):
            tokenizer.add_special_tokens([AddedToken(name, **{"normalized": False, rule: True})])
    with tempfile.TemporaryDirectory() as folder:
        return Text.load(folder_of(tokenizer, Path(folder), CHATML + QWEN3 + "[X]"))


def play(text: Text, source: str, steps: list[tuple[str, str, str]]) -> None:
    """Each turn's tokens are those of the whole chat tokenized at once."""
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    growing, chat = ChatText(text, template), list[dict[str, object]]()
    for step, content, answer in steps:
        if step == "again" and chat:
            chat = chat[:-2]
        elif step == "edit" and chat:
            chat = [*chat[:-1], {"role": "assistant", "content": answer}]
        elif step == "anew":
            chat = []
        chat = [*chat, {"role": "user", "content": content}]
        whole = ChatText(text, template).encode(chat)
        assert growing.encode(chat) == whole
        pieces = ChatText(text, template)
        with pytest.MonkeyPatch.context() as patch:  # as a chat is that is too long to be tokenized at once
            patch.setattr("paceline.runtime.text.text._PIECE", 5)
            assert pieces.encode(chat) == whole
        whole.append(0)  # a caller may go on with its list
        chat = [*chat, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(STEP, min_size=2, max_size=6))
@settings(max_examples=15, deadline=None)
def test_a_growing_chat_has_the_tokens_of_the_whole(kind: str, family: str, steps: list) -> None:
    play(text_of(kind), FAMILIES[family], steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@given(st.lists(STEP, min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_so_it_has_whatever_rules_its_control_tokens_follow(kind: str, rule: str, steps: list) -> None:
    play(text_of(kind, rule), CHATML.replace("<|im_end|>", "[X]<|im_end|>"), steps)


def test_a_turn_tokenizes_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    text, seen = text_of("byte-level"), list[int]()
    encode = Text.encode_marked

    def counted(self: Text, marked: Marked) -> list[int]:
        seen.append(len(marked))
        return encode(self, marked)

    encode_piece, pieces = Text._encode_piece, list[int]()

    def counted_piece(self: Text, marked: Marked) -> list[int]:
        pieces.append(len(marked))
        return encode_piece(self, marked)

    monkeypatch.setattr(Text, "encode_marked", counted)
    monkeypatch.setattr(Text, "_encode_piece", counted_piece)
    growing, chat = ChatText(text, ChatTemplate(CHATML)), list[dict[str, object]]()
    for turn in range(30):
        chat += [
            {"role": "user", "content": f"Question {turn}? " * 5},
            {"role": "assistant", "content": "So it is. " * 40},
        ]
        growing.encode(chat[:-1])
    assert max(seen) < 900
    growing.forget()
    growing.encode(chat[:-1])
    assert seen[-1] > 10_000
    assert max(pieces) < 9000


# Keeps the thoughts of earlier answers, as SmolLM3 and others do.
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = st.lists(st.sampled_from(["<think>", "</think>", "so", " ", "\n", "<|", "<", "th", SEEN[0]])).map(
    "".join
)
TURNS = st.lists(st.tuples(st.text("ab \n<>|", max_size=6), THINKING, THINKING), min_size=1, max_size=4)


@given(TURNS, st.booleans())
@example([("", "", "  ")], False)
@settings(max_examples=60, deadline=None)
def test_thoughts_of_the_model_stay_its_tokens(turns: list[tuple[str, str, str]], parts: bool) -> None:
    """As transformers has it; so what an answer left in the cache is found again."""
    plain, text = KINDS["byte-level"](), text_of("byte-level")
    template, growing = ChatTemplate(THOUGHTS), ChatText(text, ChatTemplate(THOUGHTS))
    chat: list[dict[str, object]] = []
    for asked, thought, answer in turns:
        chat.append({"role": "user", "content": asked})
        before = growing.encode(chat)
        assert before.tolist() == plain.encode(template.render(chat).text, add_special_tokens=False).ids
        content = [{"type": "text", "text": answer}] if parts else answer
        chat.append({"role": "assistant", "content": content, "reasoning": thought})
        after = growing.encode(chat)
        assert after.tolist() == plain.encode(template.render(chat).text, add_special_tokens=False).ids
        if not thought and not answer[:1].isspace():  # a blank may be one token with the line's end before it
            written = [*before, *plain.encode(answer + "<|im_end|>", add_special_tokens=False).ids]
            assert after.tolist()[: len(written)] == written


def test_only_the_model_may_think_and_not_even_it_may_end_a_turn() -> None:
    text, template = text_of("byte-level"), ChatTemplate(THOUGHTS)
    thought, end = text.token_id("<think>"), text.token_id("<|im_end|>")

    def count(token: int | None, **message: object) -> int:
        return text.encode_marked(template.render([message])).count(token or 0)

    for role in ("user", "system", "tool", "developer"):
        assert count(thought, role=role, content="<think>") == 0
        assert count(thought, role=role, content=[{"type": "text", "text": "<think>"}]) == 0
    assert count(thought, role="assistant", content="<think>") == 1
    assert count(thought, role="assistant", content="", reasoning="<think>") == 2
    for field in ("content", "reasoning", "thinking"):
        assert count(end, **{"role": "assistant", "content": "", field: "x<|im_end|>"}) == 1


def test_a_token_spelled_as_turns_are_is_not_the_models_to_write(tmp_path: Path) -> None:
    """Whether the tokenizer calls it special or not; what names thoughts and calls is."""
    tokenizer = KINDS["byte-level"]()
    names = ("<|turn|>", "<|START_THINKING|>", "<|tool_call_begin|>", "<tool_call>", "[TOOLS]")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    text = Text.load(folder_of(tokenizer, tmp_path, CHATML + "<tool_call>"))
    template = ChatTemplate(CHATML)
    for name, trusted in zip(names, (False, True, True, True, False), strict=True):
        for role in ("user", "assistant"):
            ids = text.encode_marked(template.render([{"role": role, "content": name}]))
            assert (text.token_id(name) in ids) == (trusted and role == "assistant"), (name, role)

"""What callers pass, checked at the call. Every function raises ArgumentError that says what was wrong."""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from paceline.memory.errors import ArgumentError
from paceline.runtime.request import Conversation, Sampling, validate

Message = Mapping[str, object]


def index(name: str, value: object) -> int:
    """A whole number."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ArgumentError(f"{name} must be a whole number, not {value!r:.40}")


def path(name: str, value: object) -> Path:
    """Where a file or a folder is."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ArgumentError(f"{name} must be a path, not {value!r:.40}")
    if not os.fspath(value):
        raise ArgumentError(f"{name} is an empty text: name a path")
    return Path(value)


def count(name: str, value: int | None, least: int = 1) -> int | None:
    """A whole number from `least` up that may be left out."""
    if value is not None and index(name, value) < least:
        raise ArgumentError(f"{name} must be {least} or more, not {value}")
    return value


def seed_of(seed: int | None, sampling: Sampling) -> int:
    """The seed, drawn where none was given and one is needed."""
    if seed is None:
        return secrets.randbits(32) if sampling.temperature > 0 else 0
    if not 0 <= index("seed", seed) < 2**64:
        raise ArgumentError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed}")
    return seed


def sampling_of(sampling: object, defaults: Sampling, vocab: int) -> Sampling:
    """The choices given, or the defaults."""
    if sampling is None:
        sampling = defaults
    if not isinstance(sampling, Sampling):
        raise ArgumentError(
            f"sampling must be a paceline.Sampling, not {type(sampling).__name__}: "
            "Sampling(temperature=0.7), or dataclasses.replace(session.defaults, temperature=0.7)"
        )
    validate(sampling, vocab)
    return sampling


def token_ids(prompt: Sequence[int], vocab: int) -> list[int]:
    """The ids of a prompt that is given as tokens."""
    listed = isinstance(prompt, Sequence) or hasattr(prompt, "__array__")
    if not listed or isinstance(prompt, bytes | bytearray | memoryview):
        raise ArgumentError(f"a prompt is a text or a list of token ids, not {type(prompt).__name__}")
    ids = [index("token id", token) for token in prompt]
    for worst in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= worst < vocab:
            raise ArgumentError(f"token id {worst} is outside the vocabulary of {vocab}")
    return ids


def conversation(messages: object, tools: object, thinking: object, values: object) -> Conversation:
    """What a chat template is given: the messages, the tools, and its variables by name."""
    asked = [dict(message) for message in messages_of(messages)]
    if tools is not None and (
        isinstance(tools, str)
        or not isinstance(tools, Sequence)
        or any(not isinstance(t, Mapping) for t in tools)
    ):
        raise ArgumentError(
            f'tools are a list such as [{{"type": "function", "function": {{...}}}}], not {tools!r:.40}'
        )
    if thinking is not None and not isinstance(thinking, bool):
        raise ArgumentError(
            f"enable_thinking is True, False or None (the template's own), not {thinking!r:.40}"
        )
    if values is not None and not isinstance(values, Mapping):
        raise ArgumentError(f"template_values are variables by their names, not {values!r:.40}")
    named = dict(values or {})
    if wrong := [name for name in named if not isinstance(name, str)]:
        raise ArgumentError(f"a variable of template_values has a name that is text, not {wrong[0]!r:.40}")
    return Conversation(asked, tools, named if thinking is None else {**named, "enable_thinking": thinking})


def messages_of(messages: object) -> list[Message]:
    """Messages of a chat, the parts of a content joined to one text.

    A message has a role and a content: a text, parts `{"type": "text", "text": ...}`, or None beside `tool_calls`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        kind = "one text" if isinstance(messages, str) else type(messages).__name__
        raise ArgumentError(
            f'messages are a list such as [{{"role": "user", "content": "Hello"}}], not {kind}'
        )
    if not messages:
        raise ArgumentError("the conversation is empty: give at least one message")
    return [_message(message) for message in messages]


def _message(message: object) -> Message:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        content = message.get("content")
        if isinstance(content, str) or (content is None and message.get("tool_calls")):
            return message
        if isinstance(content, Sequence) and content:
            return {**message, "content": "\n".join(_part(part) for part in content)}
    raise ArgumentError(f"a message needs a 'role' and a 'content', both text, not {_shown(message)}")


def _part(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    raise ArgumentError(f'a part of a content is {{"type": "text", "text": ...}}, not {_shown(part)}')


def _shown(value: object) -> str:
    return f"{dict(value) if isinstance(value, Mapping) else value!r:.80}"


def characters(messages: Sequence[Message]) -> int:
    """Characters of all contents."""
    return sum(len(content) for m in messages if isinstance(content := m.get("content"), str))

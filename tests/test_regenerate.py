"""A `/regen` that is stopped: the answer before it stays, and `/keep` takes what came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paceline
from paceline.chat_commands import perform
from paceline.chat_screen import Screen
from paceline.chat_settings import Settings
from paceline.conversation import Conversation
from paceline.runtime.events import Event

CAT, DOG = "Tell me a story about a cat.", "Tell me a story about a dog."


class Stopping(Screen):
    """Ctrl-C comes after so many pieces of an answer; None: never."""

    after: int | None = None

    def piece(self, event: Event, show_draft: bool) -> None:
        if self.after == 0:
            raise KeyboardInterrupt
        super().piece(event, show_draft)
        self.after = None if self.after is None else self.after - 1


@pytest.fixture
def chat() -> Iterator[Conversation]:
    with paceline.load() as session:
        made = Conversation(session, Settings(session.defaults, max_tokens=12), None, Stopping(True))
        made.answer(CAT)
        yield made


def stopped(chat: Conversation, after: int) -> None:
    assert isinstance(chat.screen, Stopping)
    chat.screen.after = after
    perform(chat, "/regen")
    chat.screen.after = None


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_whole_answer_stays_where_the_next_one_is_stopped(
    chat: Conversation, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = chat.messages.copy()
    stopped(chat, after)
    assert chat.messages == before
    told = capsys.readouterr().out
    assert "the answer before it stays" in told
    assert "/keep takes this one" in told
    chat.answer(DOG)
    assert chat.messages[:2] == before
    assert len(chat.messages) == 4


def test_what_came_can_be_kept_once(chat: Conversation) -> None:
    whole = chat.messages[1]["content"]
    stopped(chat, 3)
    perform(chat, "/keep")
    assert len(chat.messages) == 2
    kept = chat.messages[1]["content"]
    assert kept
    assert whole.startswith(kept)
    assert kept != whole
    with pytest.raises(ValueError, match="nothing to keep"):
        perform(chat, "/keep")


@pytest.mark.parametrize("then", ["/clear", "/regen", "a question", "/reset"])
def test_what_came_is_not_kept_in_another_place(chat: Conversation, then: str) -> None:
    stopped(chat, 3)
    if then.startswith("/"):
        perform(chat, then)
    else:
        chat.answer(then)
    after = chat.messages.copy()
    with pytest.raises(ValueError, match="nothing to keep"):
        perform(chat, "/keep")
    assert chat.messages == after


def test_a_regeneration_that_ends_takes_the_place_and_a_first_answer_stays_as_far_as_it_came(
    chat: Conversation,
) -> None:
    chat.messages[1] = {"role": "assistant", "content": "Once."}
    perform(chat, "/regen")
    assert len(chat.messages) == 2
    assert chat.messages[1]["content"] != "Once."
    assert isinstance(chat.screen, Stopping)
    chat.screen.after = 2
    chat.answer(DOG)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[3]["content"]

"""A conversation as a draft model of another bundle was taught to read it: in the frame of its own chat template."""

from __future__ import annotations

from pathlib import Path

from paceline.memory.errors import ArgumentError
from paceline.runtime.manifest import BundleError
from paceline.runtime.request import Conversation
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.text import Text

_ASKED = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


class Frame:
    """The chat template of a bundle, and its tokenizer."""

    def __init__(self, text: Text, template: ChatTemplate) -> None:
        self._text, self._template = text, template

    @classmethod
    def load(cls, folder: Path, text: Text) -> Frame | None:
        """That of a folder with a tokenizer; None where it has no template, or one that cannot be read."""
        try:
            template = ChatTemplate.load(folder, text)
        except BundleError:
            return None
        return None if template is None else cls(text, template)

    def tokens(self, asked: Conversation) -> list[int] | None:
        """Tokens of a conversation up to where its answer begins; None where the template refuses it, or fails."""
        try:
            marked = self._template.render(asked.messages, tools=asked.tools, values=asked.values)
            return self._text.encode_marked(marked) or None
        except (ArgumentError, BundleError):
            return None

    def end(self) -> int | None:
        """The token that the template writes where an answer ends, if it is one that ends answers."""
        try:
            marked = self._template.render(_ASKED, add_generation_prompt=False)
            written = self._text.encode_marked(marked)
        except (ArgumentError, BundleError):
            return None
        return next((token for token in reversed(written) if token in self._text.ends), None)

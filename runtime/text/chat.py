"""Tokens of a chat that grows: only what was added since the last turn is tokenized."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from paceline.runtime.manifest import BundleError
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.template.marked import EMPTY, Marked
from paceline.runtime.text.text import Text


class ChatText:
    """Renders and tokenizes the messages of one conversation.

    A tokenizer holds some 400 bytes for each token of a text while it works, so a long chat would take megabytes
    again at every turn. A control token cuts a text into parts whose tokens do not depend on each other: tokens
    before the last such cut that both texts share stay as they are.
    """

    def __init__(self, text: Text, template: ChatTemplate) -> None:
        self._text, self._template = text, template
        self._marked = EMPTY
        self._ids = array("q")
        self._cuts: list[int] = []
        self._spots: list[int] = []

    def encode(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        values: Mapping[str, object] | None = None,
    ) -> array[int]:
        """Tokens of a chat up to where its answer begins; values: variables for the template, as `enable_thinking`.

        Raises ValueError if the template refuses the messages, BundleError if it fails.
        """
        marked = self._template.render(messages, tools=tools, values=values)
        if not marked.text:
            raise BundleError(
                "the chat template writes nothing for these messages: export the model again with another template, or "
                "continue raw text (`paceline run --raw`, in Python: generate)"
            )
        kept = self._shared(marked)
        at, held = (self._cuts[kept - 1], self._spots[kept - 1]) if kept else (0, 0)
        rest = marked[at:]
        added = self._text.encode_marked(rest)
        cuts = self._text.cuts(rest)
        spots = [i for i, token in enumerate(added) if token in self._text.control_ids] if cuts else []
        if len(spots) != len(cuts):
            self.forget()
            return array("q", added if at == 0 else self._text.encode_marked(marked))
        ids = self._ids[:held]
        ids.extend(added)
        # The last shared cut is found again as the first of the rest.
        first = max(kept - 1, 0)
        self._cuts = [*self._cuts[:first], *(at + cut for cut in cuts)]
        self._spots = [*self._spots[:first], *(held + spot for spot in spots)]
        self._marked, self._ids = marked, ids
        return ids[:]

    def left_out(self, messages: Sequence[Mapping[str, object]]) -> list[str]:
        """Roles of messages that may say anything and the text is the same: the template has no place for them.

        Of a message whose content stands in the text that is not asked, but for the system prompt, which is short.
        """
        whole = self._template.render(messages, add_generation_prompt=True)
        found = []
        for at, message in enumerate(messages):
            content = str(message.get("content") or "").strip()
            if not content or (message["role"] != "system" and content in whole.text):
                continue
            try:
                other = {**message, "content": f"x{content}x"}
                changed = self._template.render(
                    [*messages[:at], other, *messages[at + 1 :]], add_generation_prompt=True
                )
            except (ValueError, BundleError):
                continue  # the template reads it
            if changed.text == whole.text:
                found.append(str(message["role"]))
        return found

    def unread(self, variables: Sequence[str]) -> list[str]:
        """Those of some variables that the template never names."""
        return [name for name in variables if not self._template.names(name)]

    def forget(self) -> None:
        """Let go of the last chat."""
        self._marked, self._ids, self._cuts, self._spots = EMPTY, array("q"), [], []

    def _shared(self, marked: Marked) -> int:
        """How many cuts of the last text stand in this one too, with enough text behind them to be sure of it."""
        old, beyond = self._marked, self._text.longest_control

        def agrees(cut: int) -> bool:
            end = cut + beyond
            return (
                end <= len(old)
                and marked.text.startswith(old.text[:end])
                and marked.own.startswith(old.own[:end])
            )

        return bisect_right(self._cuts, False, key=lambda cut: not agrees(cut))

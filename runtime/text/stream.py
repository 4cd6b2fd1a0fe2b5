"""From the tokens of an answer to its events: bytes, whole characters, stop strings, the end, in the right order.

Text equals the tokenizer's own one-shot decoding, with one deliberate difference: where byte tokens form no valid
text, only the broken bytes become U+FFFD, as in SentencePiece, and not the whole run of byte tokens around them.
A token costs the same wherever it stands.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from paceline.runtime.channels import Channels, Markers
from paceline.runtime.contracts import Outcome
from paceline.runtime.detokenizer import DecoderRules, byte_alphabet
from paceline.runtime.events import Event, FinishReason
from paceline.runtime.text.stops import StopStrings

Likely = tuple[float, tuple[tuple[int, float], ...]]
"""The `logprob` and `top_logprobs` of an event."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UTF8_LONGEST = 4


class TokenBytes(dict[int, bytes | None]):
    """The bytes of each token inside a text, found when they are first asked for; None where it shows nothing.

    spell: the token's text, None beyond the vocabulary. hidden: never shown.
    """

    def __init__(
        self,
        rules: DecoderRules,
        spell: Callable[[int], str | None],
        hidden: Iterable[int],
        markers: Markers | None = None,
    ) -> None:
        super().__init__()
        self.rules = rules
        self._spell = spell
        self._hidden = frozenset(hidden)
        # Characters below 256 that stand for no byte become one that latin-1 cannot write.
        self._alphabet = dict.fromkeys(range(256), 0xFFFF) | {
            ord(c): byte for c, byte in byte_alphabet().items()
        }
        self.markers = markers

    def __missing__(self, token: int) -> bytes | None:
        spelled = None if token in self._hidden or not 0 <= token < 2**32 else self._spell(token)
        found = None if spelled is None else self._bytes(self.rules.inside(spelled))
        return self.setdefault(token, found)

    def every(self, names: Mapping[str, int], size: int) -> list[bytes | None]:
        """Those of all tokens below `size`. names: the spelling of each."""
        found: list[bytes | None] = [None] * size
        inside, hidden = self.rules.inside, self._hidden
        for spelled, token in names.items():
            if token < size and token not in hidden:
                found[token] = self._bytes(inside(spelled))
        return found

    def channels(self, prompt: Sequence[int]) -> Channels | None:
        """What tells thoughts from the answer to a prompt, None for models that have no channels."""
        return None if self.markers is None else Channels(self.markers, self._spell, prompt)

    def at_start(self, token: int) -> bytes | None:
        """Its bytes as the first token that shows anything."""
        spelled = None if self[token] is None else self._spell(token)
        mark = self.rules.dropped_at_start
        return None if spelled is None else self._bytes(spelled.replace(mark, "") if mark else spelled)

    def _bytes(self, spelled: str) -> bytes:
        rules = self.rules
        if rules.byte_level:
            try:
                return spelled.translate(self._alphabet).encode("latin-1")
            except UnicodeEncodeError:
                return spelled.encode()
        for change in rules.changes:
            spelled = change(spelled)
        byte = _BYTE.fullmatch(spelled) if rules.byte_tokens else None
        return bytes([int(byte[1], 16)]) if byte else spelled.encode()


class Detokenizer:
    """Text of a growing answer. Pushed pieces and the flush together are the text of prompt and answer less
    the prompt's.

    A character is given once all of its bytes are there. If the prompt ends inside a character, its first
    bytes count: the answer then begins with the whole character. Work per token does not depend on the
    length.
    """

    def __init__(self, tokens: TokenBytes, prompt: Sequence[int] = ()) -> None:
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        mark, self._strip = tokens.rules.stripped
        self._mark = mark.encode()
        for token in prompt:
            self._next(token)
            if self._started and not self._strip:
                break
        self._utf8.decode(self._tail(prompt))
        self._channels = tokens.channels(prompt)

    def push(self, token: int) -> str:
        """The text that this token completes, often none."""
        if self._channels is not None and not self._channels.says(token):
            return ""
        if self._started and not self._strip:
            return self._utf8.decode(self._tokens[token] or b"")
        return self._utf8.decode(self._next(token))

    def flush(self) -> str:
        """U+FFFD where the answer ends inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)

    def _next(self, token: int) -> bytes:
        data = self._tokens[token] if self._started else self._tokens.at_start(token)
        if data is None:
            return b""
        self._started = True
        if not self._strip:
            return data
        while self._strip and data.startswith(self._mark):
            data, self._strip = data[len(self._mark) :], self._strip - 1
        if data:
            self._strip = 0
        return data

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """The last bytes of the prompt, enough to hold a character that it leaves unfinished."""
        tail = b""
        for token in reversed(prompt):
            tail = (self._tokens[token] or b"") + tail
            if len(tail) >= _UTF8_LONGEST:
                break
        return tail


@dataclass(slots=True)
class _Held:
    """A token whose text may still turn out to belong to a stop string: characters [start, end) of the answer."""

    token: int
    source: str | None
    likely: Likely | None
    start: int
    end: int

    def event(self, text: str) -> Event:
        return Event(text, self.token, self.source, None, *(self.likely or ()))


class TextStream:
    """Turns tokens into events and finds the end. A token is out only when all of its text may be out.

    stops: finds the strings that end the answer, None where there are none. eos: tokens that do; neither is shown.
    """

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings | None, eos: frozenset[int]) -> None:
        self._detokenizer, self._stops, self._eos = detokenizer, stops, eos
        self._held: deque[_Held] = deque()
        self._ready = ""
        self._seen = self._out = 0
        self._hit = False
        self.finished: FinishReason | None = None

    def push(self, outcome: Outcome, likely: Sequence[Likely] = ()) -> list[Event]:
        """Events of one round; sets `finished` at an end of sequence or a stop string. likely: of each token."""
        sources, path = outcome.tree.sources, outcome.verdict.path
        events: list[Event] = []
        for at, token in enumerate(outcome.tokens, 1):
            if token in self._eos:
                self.finished = "stop"
                break
            source = sources[path[at]] if at < len(path) else None
            own = likely[at - 1] if likely else None
            piece = self._detokenizer.push(token)
            if self._stops is None:
                events.append(Event(piece, token, source, None, *(own or ())))
                continue
            self._held.append(_Held(token, source, own, self._seen, self._seen + len(piece)))
            self._seen += len(piece)
            text, self._hit = self._stops.push(piece)
            self._release(text, events)
            if self._hit:
                self.finished = "stop"
                break
        return events

    def close(self, reason: FinishReason = "length") -> list[Event]:
        """What was held back, then the last event; `reason` unless the answer has ended by itself."""
        events: list[Event] = []
        if not self._hit:
            text = self._detokenizer.flush()
            if self._stops is not None:
                text, self._hit = self._stops.push(text)
                text += "" if self._hit else self._stops.flush()
            if self._hit:
                self.finished = "stop"
            self._release(text, events)
        events.append(Event(self._ready, finish_reason=self.finished or reason))
        return events

    def _release(self, text: str, events: list[Event]) -> None:
        """Give the text to the tokens that it completes."""
        self._ready += text
        self._out += len(text)
        while self._held and self._held[0].end <= self._out:
            held = self._held.popleft()
            size = len(self._ready) - (self._out - held.end)
            events.append(held.event(self._ready[:size]))
            self._ready = self._ready[size:]
        if self._hit and self._held and self._held[0].start < self._out:
            events.append(self._held.popleft().event(self._ready))
            self._ready = ""

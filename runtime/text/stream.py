"""From rounds of tokens to events: text, stop strings, end of sequence, in the right order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline.runtime.contracts import Outcome
from paceline.runtime.events import Event, FinishReason
from paceline.runtime.text.stops import StopStrings
from paceline.runtime.text.text import Text


@dataclass(slots=True)
class _Held:
    """A token whose text may still turn out to belong to a stop string: characters [start, end) of the answer."""

    token: int
    source: str | None
    start: int
    end: int


class TextStream:
    """Turns tokens into events and finds the end. A token is out only when all of its text may be out."""

    def __init__(self, text: Text, prompt: Sequence[int], stops: Sequence[str], eos: frozenset[int]) -> None:
        self._detokenizer = text.detokenizer(prompt)
        self._stops = StopStrings(stops) if stops else None
        self._eos = eos
        self._held: deque[_Held] = deque()
        self._ready = ""
        self._seen = self._out = 0
        self._hit = False
        self.finished: FinishReason | None = None

    def push(self, outcome: Outcome) -> Iterator[Event]:
        """Events of one round; sets `finished` at an end of sequence or a stop string."""
        tree, verdict = outcome.tree, outcome.verdict
        drafted = [(int(tree.tokens[n]), tree.sources[n]) for n in verdict.path[1:]]
        for token, source in (*drafted, (verdict.next_token, None)):
            if token in self._eos:
                self.finished = "stop"
                return
            yield from self._token(token, source)
            if self.finished:
                return

    def close(self) -> Iterator[Event]:
        """What was held back, then the last event."""
        if not self._hit:
            yield from self._release(self._emit(self._detokenizer.flush(), last=True))
        yield Event(self._ready, finish_reason=self.finished or "length")

    def _token(self, token: int, source: str | None) -> Iterator[Event]:
        piece = self._detokenizer.push(token)
        self._held.append(_Held(token, source, self._seen, self._seen + len(piece)))
        self._seen += len(piece)
        yield from self._release(self._emit(piece))

    def _emit(self, piece: str, last: bool = False) -> str:
        """Text that no stop string can claim any more."""
        if self._stops is None:
            return piece
        text, self._hit = self._stops.push(piece)
        if self._hit:
            self.finished = "stop"
        elif last:
            text += self._stops.flush()
        return text

    def _release(self, text: str) -> Iterator[Event]:
        """Give the text to the tokens that it completes."""
        self._ready += text
        self._out += len(text)
        while self._held and self._held[0].end <= self._out:
            held = self._held.popleft()
            size = len(self._ready) - (self._out - held.end)
            event = Event(self._ready[:size], held.token, held.source)
            self._ready = self._ready[size:]
            yield event
        if self._hit and self._held and self._held[0].start < self._out:
            held = self._held.popleft()
            event = Event(self._ready, held.token, held.source)
            self._ready = ""
            yield event

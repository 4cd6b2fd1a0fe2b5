"""From rounds of tokens to events: text, stop strings, end of sequence, in the right order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.runtime.contracts import Outcome
from paceline.runtime.events import Event, FinishReason
from paceline.runtime.text.stops import StopStrings
from paceline.runtime.text.text import Text

Likely = tuple[float, tuple[tuple[int, float], ...]]
"""The `logprob` and `top_logprobs` of an event."""


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
    """Turns tokens into events and finds the end. A token is out only when all of its text may be out."""

    def __init__(self, text: Text, prompt: Sequence[int], stops: Sequence[str], eos: frozenset[int]) -> None:
        self._detokenizer = text.detokenizer(prompt)
        finder = StopStrings(stops)
        self._stops = finder if stops else None
        # A special token shows no text that a stop string could be found in: its id ends the answer.
        known = {text.token_id(stop) for stop in stops}
        self._eos = eos | {token for token in known if token in text.special_ids}
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

"""The wire format of protocol buffers, read strictly: only what serialisers write is taken.

Of a single field that comes twice one reader keeps the last and another merges both; of a field of the wrong type, a
number with needless bytes or a group they disagree as well. Nothing honest needs them, so each is an error here, and
what is taken means the same to every reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NUMBER, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5
"""Fields that may come once."""
MANY = 8
"""Added to one of these: any number of times, numbers also packed into one field of bytes."""

Span = tuple[int, int]
"""Where the content of a field of bytes starts and ends."""
_PACKED = (MANY + NUMBER, MANY + DOUBLE, MANY + FLOAT)


class WireError(ValueError):
    """Bytes that are no such message; the text goes on behind the name of a file."""


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of a message that may stand in a file, by number, and the names of some that may not."""

    name: str
    fields: Mapping[int, int]
    refused: Mapping[int, str]


class Reader:
    """Reads messages out of bytes; `most` fields and numbers in all, so that time and memory are bounded."""

    def __init__(self, raw: bytes, most: int) -> None:
        self._raw, self._left = raw, most

    def fields(self, span: Span, message: Message) -> dict[int, list[int | Span]]:
        """The values of a message's fields by number, in their order. Raises WireError."""
        raw, known = self._raw, message.fields
        found: dict[int, list[int | Span]] = {}
        at, end = span
        while at < end:
            key, at = self._number(at, end)
            number, wire = key >> 3, key & 7
            form = known.get(number)
            if form is None:
                what = message.refused.get(number, f"a field of number {number} in a {message.name}")
                raise WireError(f"has {what}")
            if wire != form & 7 and not (wire == BYTES and form in _PACKED):
                raise WireError(f"has a field of wrong type ({number} in a {message.name})")
            value: int | Span
            if wire == BYTES:
                size, at = self._number(at, end)
                value = (at, at + size)
                at += size
            elif wire == NUMBER:
                value, at = self._number(at, end)
            else:
                size = 4 if wire == FLOAT else 8
                value = int.from_bytes(raw[at : at + size], "little")
                at += size
            if at > end:
                raise WireError(f"is cut off in a {message.name}")
            if number not in found:
                found[number] = [value]
            elif form >= MANY:
                found[number].append(value)
            else:
                raise WireError(f"has a single field twice ({number} in a {message.name})")
            self._count()
        return found

    def text(self, values: list[int | Span] | None) -> str:
        """The content of a field of text that may come once; "" where it is absent. Raises WireError."""
        if values is None:
            return ""
        [value] = values
        try:
            return self.bytes(value).decode()
        except UnicodeDecodeError:
            raise WireError("has a name that is no text") from None

    def bytes(self, value: int | Span) -> bytes:
        """The content of a field of bytes."""
        assert isinstance(value, tuple)
        return self._raw[value[0] : value[1]]

    def numbers(self, values: list[int | Span] | None) -> list[int]:
        """Repeated numbers, packed or not, as signed ones of 64 bits. Raises WireError."""
        found: list[int] = []
        for value in values or ():
            if isinstance(value, int):
                found.append(value)
                continue
            at, end = value
            while at < end:
                number, at = self._number(at, end)
                found.append(number)
                self._count()
        return [n - 2**64 if n >= 2**63 else n for n in found]

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise WireError("has more fields than any model needs")

    def _number(self, at: int, end: int) -> tuple[int, int]:
        """A varint and where the next byte is."""
        if at >= end:
            raise WireError("is cut off in a number")
        byte = self._raw[at]
        at += 1
        if byte < 128:
            return byte, at
        value, shift = byte & 127, 7
        while byte >= 128:
            if at >= end:
                raise WireError("is cut off in a number")
            byte = self._raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise WireError("has a number of more than ten bytes")
        if byte == 0 or value >= 2**64:
            raise WireError("has a number in another form than is written")
        return value, at

"""What a language model is trained on: stories read from text files, weighted, with a part held out."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

END_OF_TEXT = "<|endoftext|>"
_HELD_OUT_ONE_IN = 100
_FEWEST = 500
"""Of so many stories one is held out but for one case in 150."""
_HEAD = 1 << 16
"""Bytes of a text that are looked at first."""
_SHORT = 40
"""Words of a story that is too short to name its hero in few of them."""
_OPENING = re.compile(r"\n\s*\n(?=Once upon a time|One day, (?:a|an|there)\b)")
"""Where the next story begins in a text without markers."""
_BEGINNING = re.compile(
    r"(?:Once|One (?:\w+ )?(?:day|time|morning|night)|Long ago|In an? |There (?:was|were|lived)|An? "
    r"|(?!He|She|They|It|We|You|I|The|This|That|Then|His|Her|Mom|Dad|So|But|And)[A-Z]\w+(?: and \w+)? "
    r"(?:was|were|is|are|had|has|love[sd]?|like[sd]?|want(?:s|ed)?|lived?|saw|sees?|went|woke)\b)"
    r"(?! *(?:day|time|morning|night)?, (?:he|she|they|it|his|her|their|the) )"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One text file and how many times an epoch repeats it."""

    path: Path
    weight: int = 1

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `FILE` or `FILE=WEIGHT`."""
        path, sep, weight = text.rpartition("=")
        if not (path if sep else text):
            raise ValueError(f"--text {text!r} names no file")
        if not sep:
            return cls(Path(text))
        if not weight.isdigit() or int(weight) < 1:
            raise ValueError(f"--text {text!r}: the weight after '=' must be a whole number from 1 up")
        return cls(Path(path), int(weight))

    def check(self) -> None:
        """Raise ValueError where there is no such file, or where it begins as no text does."""
        if not self.path.is_file():
            raise ValueError(f"no text file at {self.path}")
        with _opened(self.path) as file:
            head = file.read(_HEAD)
        _decoded(self.path, head[: head.rfind(b"\n") + 1] or head[:-4])


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}): fetch it again") from None


def _decoded(path: Path, raw: bytes) -> str:
    if b"\0" in raw:
        raise ValueError(f"{path} is not text (it holds zero bytes): give a UTF-8 text file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None


def _story_of(path: Path, number: int, line: str) -> str:
    try:
        story = json.loads(line)["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        story = None
    if not isinstance(story, str):
        raise ValueError(f"line {number} of {path} is no JSON object with a text in its field 'text'")
    return story


def read_stories(path: Path) -> list[str]:
    """Stories of a `.jsonl`/`.jsonl.gz` (field `text`) or a text file cut at `<|endoftext|>`, else at openings.

    Raises ValueError that names the file, and the line where one is wrong.
    """
    if not path.is_file():
        raise ValueError(f"no text file at {path}")
    with _opened(path) as file:
        text = _decoded(path, file.read())
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        lines = enumerate(text.split("\n"), 1)
        stories = [_story_of(path, number, line) for number, line in lines if line.strip()]
    else:
        stories = text.split(END_OF_TEXT) if END_OF_TEXT in text else _OPENING.split(text)
    return [_tidy(s) for s in stories if len(s.strip()) > 40]


def _tidy(story: str) -> str:
    """Straight quotes and single line breaks, so that two corpora spell the same thing the same way."""
    for old, new in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("…", "..."), ("—", " - "), ("–", "-")):
        story = story.replace(old, new)
    return "\n".join(line.strip() for line in story.strip().splitlines() if line.strip())


def goes_in_circles(story: str) -> bool:
    """Whether a story says the same three words, or one longer word, over and over."""
    words = re.findall(r"[a-z']+", story.lower())
    threes = list(zip(words, words[1:], words[2:], strict=False))
    long = Counter(w for w in words if len(w) > 3)
    often = len(words) > _SHORT and max(long.values()) > 0.2 * long.total()
    return often or len(set(threes)) < 0.84 * len(threes)


def begins(story: str) -> bool:
    """Whether it begins as a story does, and not in the middle of one."""
    return bool(_BEGINNING.match(story))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training stories (repeated by weight) and held-out stories, each text once."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def load_corpus(sources: Sequence[Source]) -> Corpus:
    """Read every source. A story is held out by a hash of its text, so no copy of it is trained on."""
    train: list[str] = []
    held_out: dict[str, None] = {}
    for source in sources:
        for story in read_stories(source.path):
            if zlib.crc32(story.encode()) % _HELD_OUT_ONE_IN == 0:
                held_out.setdefault(story)
            else:
                train.extend([story] * source.weight)
    if not train or not held_out:
        raise ValueError(
            f"too little text: {len(train) + len(held_out)} stories, of which one in {_HELD_OUT_ONE_IN} is held out to "
            f"measure the loss: give at least {_FEWEST} with --text, which may stand several times"
        )
    return Corpus(tuple(train), tuple(held_out))

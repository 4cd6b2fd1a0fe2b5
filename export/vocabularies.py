"""Draft models whose vocabulary is not the target's: their tokenizer becomes a part of the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from tokenizers import Tokenizer

from paceline.export.errors import ExportError
from paceline.export.report import PartReport
from paceline.export.text_check import open_text
from paceline.export.tokens import first_difference
from paceline.runtime.manifest import TOKENIZER
from paceline.runtime.text.text import Text
from paceline.runtime.translation.mapping import map_vocabularies, overlap
from paceline.runtime.translation.spelling import Spelling


@dataclass(frozen=True, slots=True)
class OwnVocabulary:
    """A draft model's tokenizer as it lies in the bundle. path: of its file. shared: in words, what both sides have."""

    tokenizer: Tokenizer
    path: str
    shared: str

    def put_into(self, report: PartReport) -> PartReport:
        """The report of a part that has it."""
        part = msgspec.structs.replace(report.part, tokenizer=self.path)
        return replace(report, part=part, notes=(*report.notes, self.shared))


def own_vocabulary(
    name: str, write: Callable[[Path], tuple[Tokenizer, list[str]]], target: Tokenizer, work: Path
) -> OwnVocabulary | None:
    """Write what the text side of a draft model is, where its tokens are not the target's; None where they are.

    write: writes it into a folder. Raises ExportError for a tokenizer that cannot be used.
    """
    with TemporaryDirectory() as aside:
        theirs, _ = write(Path(aside))
        if first_difference(target, theirs) is None:
            return None
    place = work / "drafters" / name
    place.mkdir(parents=True, exist_ok=True)
    theirs, _ = write(place)
    text, _ = open_text(place)
    draft, ours = Spelling.of(text), Spelling.of(Text.load(work))
    found = overlap(draft, ours, map_vocabularies(draft, ours))
    if not found.shared + found.runs:
        raise ExportError(
            f"the drafter {name} spells no token of the target ({first_difference(target, theirs)}): take another one"
        )
    return OwnVocabulary(theirs, (place / TOKENIZER).relative_to(work).as_posix(), found.words())

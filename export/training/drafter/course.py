"""A drafter to train, with what it learns from and what it is measured on: made of a bundle and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from paceline.export.training import loop
from paceline.export.training.answers import Answers
from paceline.export.training.corpus import Source, read_stories
from paceline.export.training.drafter.lessons import WRITTEN, Batch, Pupil, Recipe, make_batch
from paceline.export.training.drafter.shape import TEXT, Table, start_drafter, where_begun
from paceline.export.training.drafter.teacher import Spoken, Teacher, untapped
from paceline.export.training.heads.batches import Groups, held_out
from paceline.export.training.heads.choice import CHECKPOINT
from paceline.export.training.heads.measure import Measured
from paceline.export.training.heads.target import read_target
from paceline.export.training.heads.vocabulary import counted
from paceline.export.training.lm import Shape
from paceline.export.training.start import Weights
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import TOKENIZER

_HELD_OUT_ONE_IN = 20
_MEASURED = 3000
"""Tokens of held-out answers that it is measured on."""
_SHORTEST = 8
"""Tokens of a text worth learning."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to learn from. size: tokens of a step; prompts: share of the places in prompts; threads: of the target."""

    size: int
    prompts: float
    threads: int
    table: Table
    text: tuple[Source, ...] = ()
    text_epochs: float = 1.0
    text_share: float = 0.5
    """Of the minutes, at most, for the texts."""


@dataclass(frozen=True, slots=True)
class Course:
    """All that training needs."""

    folder: Path
    bundle: Bundle
    shape: Shape
    lesson: Lesson
    recipe: Recipe
    learnt: list[Spoken]
    kept: list[Spoken]
    head: Tensor | None
    longest: int
    begin: Weights | None = None
    """What a new drafter begins with."""

    @property
    def parameters(self) -> int:
        """Of the drafter, the table once."""
        return sum(p.numel() for p in self.shape.build().parameters())

    def pupil(self, recipe: Recipe, folder: Path) -> Pupil:
        """The drafter of a folder, or a new one."""
        table = self.head if self.lesson.table == "projected" else None
        counts = counted(self.learnt, self.bundle.manifest.target.vocab)
        model = start_drafter(folder, self.shape, self.bundle, table, counts, recipe.seed, self.begin)
        head = None if self.head is None else self.head.to(recipe.device)
        longest = min(self.longest + WRITTEN, self.shape.context)
        teacher = Teacher(self.bundle, head, longest, self.lesson.threads)
        return Pupil(model.train(), self.bundle, teacher, self.kept, recipe)

    def batches(self, spoken: Sequence[Spoken], own: float) -> Groups[Batch]:
        """Of these texts; own: see `Recipe`."""
        prompts = self.lesson.prompts
        return Groups(
            spoken,
            self.lesson.size,
            self.longest,
            self.recipe.seed,
            lambda group, rng: make_batch(group, self.longest, rng, prompts, own),
        )


def make_course(
    folder: Path,
    bundle: Bundle,
    shape: Shape,
    answers: Answers,
    lesson: Lesson,
    recipe: Recipe,
    begin: Weights | None = None,
) -> Course:
    """Raises ValueError where there are too few answers."""
    try:
        head = read_target(bundle).head
    except ValueError:
        head = None  # its logits are made in another way: it is asked itself
    states = head is not None and bool(answers.taps)
    spoken = [
        Spoken(c.tokens, c.prompt, c.taps[:, -1:].copy()) if states else untapped(c.tokens, c.prompt)
        for c in answers
    ]
    learnt, kept = held_out(spoken, _HELD_OUT_ONE_IN)
    wish = answers.index.wish
    longest = min(wish.prompt + wish.longest, shape.context)
    few = list(_first(kept, _MEASURED))
    return Course(folder, bundle, shape, lesson, recipe, learnt, few, head, longest, begin)


def _first(spoken: Iterable[Spoken], most: int) -> Iterable[Spoken]:
    """Texts until they have so many tokens of answers."""
    for text in spoken:
        if most <= 0:
            return
        most -= len(text.tokens) - text.prompt
        yield text


def read_texts(
    sources: Sequence[Source], tokenizer: Tokenizer, end: int | None, longest: int
) -> list[Spoken]:
    """Texts as tokens, an end behind each, cut at `longest`. Raises ValueError as `read_stories` does."""
    found = []
    for source in sources:
        for encoded in tokenizer.encode_batch_fast(read_stories(source.path), add_special_tokens=False):
            ids = np.array([*encoded.ids, *([] if end is None else [end])], np.int32)
            pieces = (ids[at : at + longest] for at in range(0, len(ids), longest))
            found += [untapped(piece, 1) for piece in pieces if len(piece) >= _SHORTEST] * source.weight
    if not found:
        raise ValueError("the texts given by --text are too short to learn from: give longer ones")
    return found


def begin_with_text(course: Course, report: loop.Report) -> None:
    """Learn the next token of texts first (FastDraft), in a folder of its own, unless that is over."""
    lesson, place = course.lesson, course.folder / TEXT
    if not lesson.text or (course.folder / CHECKPOINT).is_file():
        return
    tokenizer = Tokenizer.from_file(str(course.bundle.folder / TOKENIZER))
    end = min(course.bundle.generation.eos_ids, default=None)
    texts = read_texts(lesson.text, tokenizer, end, course.longest)
    recipe = replace(
        course.recipe,
        loss="ce",
        epochs=lesson.text_epochs,
        minutes=course.recipe.minutes * lesson.text_share,
        own=0.0,
    )
    loop.train(course.pupil(recipe, place), course.batches(texts, 0.0), recipe, place, report)


def train_drafter(course: Course, report: loop.Report) -> Measured:
    """Learn from the target's answers, after the texts; returns what it is worth at the end. Raises as `loop.train`."""
    begin_with_text(course, report)
    recipe, folder = course.recipe, course.folder
    pupil = course.pupil(recipe, where_begun(folder, bool(course.lesson.text)))
    return loop.train(pupil, course.batches(course.learnt, recipe.own), recipe, folder, report)

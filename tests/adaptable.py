"""A tiny bundle whose draft model learns, the checkpoints that it was made of, and what it may learn from."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from small_checkpoints import write_checkpoint

from paceline.export.adaptation.adding import adapt_bundle
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.adaptation.laws import Episode
from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.adaptation.step import TrainingStep
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.part import Schedule

RANK, VOCAB = 3, 320


@cache
def checkpoints() -> tuple[Path, Path]:
    """A target, and a draft model of one layer."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return (
        write_checkpoint(folder / "target"),
        write_checkpoint(folder / "draft", num_hidden_layers=1, hidden_size=32, tie_word_embeddings=False),
    )


@cache
def plain_bundle() -> Path:
    """Of both, without adapters."""
    target, draft = checkpoints()
    out = target.parent / "plain"
    export_bundle(Order(str(target), drafters={"draft": str(draft)}), out)
    return out


@cache
def adaptable_bundle() -> Path:
    """The same, whose draft model has adapters."""
    out = plain_bundle().with_name("adaptable")
    adapt_bundle(plain_bundle(), RANK, out)
    return out


def pupil() -> Pupil:
    """Its draft model, as it learns."""
    part = open_bundle(adaptable_bundle()).manifest.drafters["draft"]
    step = TrainingStep(Graph(adaptable_bundle() / str(part.training), find_device("cpu"), 1, part), part)
    return Pupil("draft", step, part.vocab, None)


def some_episode(length: int = 100, seed: int = 0) -> Episode:
    """A random text, and random laws of it from its eleventh token on."""
    rng = np.random.default_rng(seed)
    places = np.arange(10, length - 1, dtype=np.int32)
    ids = np.stack([rng.permutation(VOCAB)[:16] for _ in places]).astype(np.int32)
    probs = rng.dirichlet(np.full(17, 0.2), len(places))[:, :16].astype(np.float32)
    return Episode(rng.integers(0, VOCAB, length).tolist(), places, ids, probs)


@cache
def predicting_bundle(schedule: Schedule) -> Path:
    """The same, whose draft model predicts acceptance, too."""
    out = plain_bundle().with_name(schedule)
    adapt_bundle(plain_bundle(), RANK, out, predictor=schedule)
    return out

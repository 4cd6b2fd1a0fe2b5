"""A tiny bundle whose draft model learns, and the checkpoints that it was made of."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from small_checkpoints import write_checkpoint

from paceline.export.adaptation.adding import adapt_bundle
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle

RANK = 3


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

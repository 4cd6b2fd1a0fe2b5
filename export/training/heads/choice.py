"""Which head is wanted, and whether it can be had: what is known before anything takes time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.export.folder import read_json
from paceline.export.heads.config import (
    CONFIG,
    DEEPEST,
    MARK,
    WEIGHTS,
    WIDEST,
    HeadConfig,
    Method,
    read_config,
)
from paceline.export.training.answers import FINAL
from paceline.runtime.bundle.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Choice:
    """What head is wanted. None: as in a checkpoint that is there, else VOCAB, the target's `inner`, untied, USUAL."""

    method: Method
    vocab: int | None = None
    depth: int | None = None
    inner: int | None = None
    tied: bool | None = None
    layers: int | None = None


UNROLLED = 5
"""Levels that most heads learn, as far as they have them."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What holds for a method where nobody says otherwise.

    depth: levels that it drafts. levels: those that it learns, at most. features: weight of the target's own last
    states beside the law. share: of the places in a text that learn the levels after the first. layers: of attention,
    where a head may have several.
    """

    depth: int
    levels: int = UNROLLED
    features: float = 3.0
    share: float = 0.5
    layers: int = 1


USUAL: dict[Method, Usual] = {
    # One step, of which the states weigh ten times the law: the recipe of its paper.
    "eagle": Usual(DEEPEST, levels=1, features=10.0),
    "eagle3": Usual(DEEPEST),
    "hydra": Usual(4),
    "medusa": Usual(4),
    # Levels differ in nothing but their place.
    "kangaroo": Usual(6, levels=1),
    # All levels come of one pass, whether they are learnt or not; a place costs as many rows of every layer.
    "dflash": Usual(7, levels=WIDEST, share=0.125, layers=3),
    "clover": Usual(4),
    "falcon": Usual(DEEPEST),
}
VOCAB = 8192
"""Rows of its vocabulary."""
CHECKPOINT, CURVE = "checkpoint.pt", "curve.jsonl"
"""Beside the head: what training goes on from, and how it went."""


def taps_of(bundle: Bundle) -> tuple[str, ...]:
    """The taps of single layers that answers of this bundle keep, or the last one where there are no others.

    Raises ValueError where it does not give what training needs.
    """
    given = bundle.manifest.target.taps
    if FINAL not in given:
        layers = bundle.manifest.target.layers
        places = sorted({min(2, layers - 1), layers // 2, max(0, layers - 3)})
        wanted = ",".join([*(f"hidden.{place}" for place in places), FINAL])
        raise ValueError(
            f"{bundle.folder} gives {', '.join(given) or 'no taps'} and no {FINAL}, which heads are taught by: make a "
            f"bundle that does with `paceline export {bundle.folder} OUT --taps {wanted}`"
        )
    return _of_layers(given)


def read_by(method: Method, given: Sequence[str], layers: int) -> tuple[str, ...]:
    """What a head reads of these taps: those of single layers, or the last one where there are no others.

    layers: of the target. EAGLE-1 reads the last tap, which it guesses; Kangaroo the earliest, behind which layers must
    be left. Raises ValueError where there is no such tap.
    """
    if method == "eagle":
        return (FINAL,)
    if method == "kangaroo":
        after = min((int(tap.partition(".")[2]) for tap in given if tap != FINAL), default=layers)
        if after >= layers - 1:
            raise ValueError(
                f"kangaroo goes on from an early layer, and the taps {', '.join(given)} of {layers} layers have none: "
                f"export the bundle with --taps hidden.{max(0, min(2, layers - 2))},{FINAL}, and let it answer again"
            )
        return (f"hidden.{after}",)
    return _of_layers(given)


def _of_layers(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(tap for tap in given if tap != FINAL) or (FINAL,)


def check_choice(folder: Path, choice: Choice) -> HeadConfig | None:
    """The configuration of a head that is there already. Raises ValueError where another one is wanted."""
    if not (folder / CONFIG).is_file():
        if there := [name for name in (WEIGHTS, CHECKPOINT, CURVE) if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds {' and '.join(there)} of something else than a draft head: train into another folder"
            )
        return None
    if MARK not in read_json(folder / CONFIG):
        raise ValueError(f"{folder} holds something else than a draft head: train into another folder")
    config = read_config(folder)
    for name in ("method", "vocab", "depth", "inner", "tied", "layers"):
        wanted, there = getattr(choice, name), getattr(config, name)
        if wanted is not None and wanted != there and not (name == "vocab" and wanted > config.target_vocab):
            raise ValueError(
                f"{folder} holds a head of {name} {there}, not {wanted}: train into another folder, or delete it"
            )
    return config


def depth_of(choice: Choice, there: HeadConfig | None) -> int:
    """Levels of the head that is wanted."""
    return there.depth if there else choice.depth or USUAL[choice.method].depth

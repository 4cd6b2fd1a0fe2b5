"""Which layers an exit is trained behind, and whether it can be: what is known before anything takes time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paceline.export.folder import read_json
from paceline.export.heads.config import CONFIG, WEIGHTS, target_id
from paceline.export.skips.trained import MARK, read_exit_config
from paceline.export.training.answers import FINAL
from paceline.export.training.heads.choice import CHECKPOINT, CURVE, VOCAB
from paceline.runtime.bundle.bundle import Bundle

_EIGHTHS = (2, 3, 4, 5)
"""Of all layers, behind which it pays to leave: earlier little is known yet, later little is left to draft beside."""


def layers_of(given: Sequence[str], bundle: Bundle) -> list[int]:
    """The layers of these taps behind which others are left. Raises ValueError where there is none, or no FINAL."""
    count = bundle.manifest.target.layers
    found = sorted(int(tap.partition(".")[2]) for tap in given if tap != FINAL)
    found = [layer for layer in found if layer < count - 1]
    if found and FINAL in given:
        return found
    wanted = sorted({min(max(count * eighths // 8 - 1, 0), max(count - 2, 0)) for eighths in _EIGHTHS})
    names = ",".join([*(f"hidden.{layer}" for layer in wanted), FINAL])
    raise ValueError(
        f"{bundle.folder} gives {', '.join(given) or 'no taps'}, and exits are taught by {FINAL} behind early layers: "
        f"make a bundle that gives these with `paceline export {bundle.folder} OUT --taps {names}`"
    )


def check_there(folder: Path, bundle: Bundle, layers: Sequence[int], rank: int, vocab: int | None) -> int:
    """How many tokens of the target exits are to know: vocab, or None for as many as those have that are there.

    Raises ValueError where a folder holds something else than these exits of this target.
    """
    wanted = min(VOCAB if vocab is None else vocab, bundle.manifest.target.vocab)
    if not (folder / CONFIG).is_file():
        if there := [name for name in (WEIGHTS, CHECKPOINT, CURVE) if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds {' and '.join(there)} of something else than an exit: train into another folder"
            )
        return wanted
    if MARK not in read_json(folder / CONFIG):
        raise ValueError(f"{folder} holds something else than an exit: train into another folder")
    config, target = read_exit_config(folder), bundle.manifest.target
    same = config.target.weights == target_id(bundle.manifest).weights
    if not same or (config.layers, config.rank) != ([*layers], min(rank, target.hidden)):
        raise ValueError(
            f"{folder} holds exits of rank {config.rank} behind layers {', '.join(map(str, config.layers))} of "
            f"{config.target.name}, not these: train into another folder"
        )
    known = config.vocab or target.vocab
    if vocab is not None and wanted != known:
        raise ValueError(
            f"{folder} holds exits that know {known} tokens, not {wanted}: train into another folder, or leave "
            "--vocab out"
        )
    return known

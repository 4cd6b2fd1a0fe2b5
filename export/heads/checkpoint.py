"""A trained head as it lies on disk: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.export.errors import ExportError
from paceline.export.folder import check_folder, licence_of, read_json
from paceline.export.heads.config import CONFIG, MARK, WEIGHTS, HeadConfig, Shapes, read_config
from paceline.export.heads.head import Head
from paceline.export.heads.methods import METHODS
from paceline.export.heads.published import published
from paceline.export.heads.tensors import check_ascending, check_shapes, load_tensors, shapes_in

VOCABULARY = "vocabulary"


def read_head(folder: Path, layers: int, head_dim: int = 0) -> Head:
    """Read and check a head's folder: one that `paceline train head` made, or one in a published layout.

    layers, head_dim: of the target; some published heads name taps from its end, or say nothing of sizes. Raises
    ExportError, whose message is one line.
    """
    given = _given(folder)
    if MARK not in given and (found := published(folder, given, layers, head_dim)) is not None:
        return found
    return read_trained(folder)


def read_trained(folder: Path) -> Head:
    """The same of a head that `paceline train head` made, and no other."""
    if MARK not in _given(folder):
        raise ExportError(
            f"{folder} is no head: its {CONFIG} is neither what `paceline train head` writes (it has no {MARK}) "
            "nor that of a published EAGLE, Medusa or Hydra head"
        )
    config, path = read_config(folder), folder / WEIGHTS
    shapes = expected_shapes(config)
    check_shapes(path, shapes, shapes_in(path))
    weights, numbers = load_tensors(path, shapes, (VOCABULARY,))
    vocabulary = numbers[VOCABULARY]
    check_ascending(path, VOCABULARY, vocabulary, config.target_vocab)
    return Head(config, weights, vocabulary, licence_of(folder), METHODS[config.method].style)


def expected_shapes(config: HeadConfig) -> Shapes:
    """Every tensor of the checkpoint of such a head."""
    wide, taps, method = config.hidden, len(config.taps), METHODS[config.method]
    shapes: Shapes = {VOCABULARY: (config.vocab,), **method.shapes(config)}
    if method.style.fused:
        shapes["fc.weight"] = wide, taps * wide
        shapes |= {f"tap_norms.{i}.weight": (wide,) for i in range(taps)}
    if method.embeds:
        shapes["embed.weight"] = config.vocab + 1, wide
    return shapes if config.tied else {**shapes, "head.weight": (config.vocab, wide)}


def _given(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ExportError(f"no head at {folder}: there is no such folder (`paceline train head` makes one)")
    check_folder(folder)
    return read_json(folder / CONFIG)

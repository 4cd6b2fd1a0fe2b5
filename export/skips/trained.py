"""A trained exit as it lies on disk: it moves the states of a layer to where the target's norm and LM head read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from paceline.export.errors import ExportError
from paceline.export.folder import check_folder, read_json
from paceline.export.heads.config import CONFIG, WEIGHTS, TargetId, target_id
from paceline.export.heads.tensors import check_ascending, check_shapes, load_tensors, shapes_in
from paceline.runtime.manifest import Manifest
from paceline.runtime.part import Layer, Share, Width

MARK, VOCABULARY = "paceline_exit", "vocabulary"
LEAST = 16
"""Tokens of a vocabulary of its own."""
EPSILON = 1e-6
"""Added to the mean square of a state before it is made of size 1."""
Recall = dict[Layer, Annotated[list[Share], Meta(max_length=64)]]


class ExitConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes and choices of an exit that was trained behind several layers, of which `layer` is to be used."""

    paceline_exit: Literal[1] = 1
    """The version of this layout."""
    hidden: Width
    rank: Width
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=64)]
    layer: Layer
    recall: Recall = {}
    """By layer, how often the target's choice was among the first 1, 2, 3 ... that it named, on held-out answers."""
    target: TargetId
    vocab: Annotated[int, Meta(ge=LEAST, le=2**24)] | None = None
    """Tokens that it knows; None: all of the target's."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of its checkpoint."""
        found: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            found[f"down.{layer}"] = self.hidden, self.rank
            found[f"up.{layer}"] = self.rank, self.hidden
            found[f"bias.{layer}"] = (self.hidden,)
        if self.vocab is not None:
            found[VOCABULARY] = (self.vocab,)
        return found


@dataclass(frozen=True, slots=True)
class Exit:
    """weights: `down` [hidden, rank], `up` [rank, hidden] and `bias` [hidden] of the layer that is used: a state x of
    size 1 becomes `x + x @ down @ up + bias`. vocabulary: ids of the target that it knows, ascending; None: all.
    """

    config: ExitConfig
    weights: dict[str, npt.NDArray[np.float32]]
    vocabulary: npt.NDArray[np.int64] | None = None


def is_exit(folder: Path) -> bool:
    """Whether a folder holds a trained exit, whole or not."""
    return (folder / CONFIG).is_file() and MARK in read_json(folder / CONFIG)


def read_exit_config(folder: Path) -> ExitConfig:
    """The configuration alone. Raises ExportError, whose message is one line."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise ExportError(f"no exit at {folder}: there is no such folder (`paceline train exit` makes one)")
    check_folder(folder)
    given: Any = read_json(path)
    if MARK not in given:
        raise ExportError(f"{folder} is no exit: its {CONFIG} is not what `paceline train exit` writes")
    try:
        config = msgspec.convert(given, ExitConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path}: {error}: train the exit again, or correct the file") from None
    if config.layer not in config.layers:
        raise ExportError(f"{path}: layer {config.layer} was not trained: name one of {config.layers}")
    return config


def read_exit(folder: Path) -> Exit:
    """Read and check a folder that `paceline train exit` made. Raises ExportError, whose message is one line."""
    config, path = read_exit_config(folder), folder / WEIGHTS
    check_shapes(path, config.shapes(), shapes_in(path))
    tensors, numbers = load_tensors(path, config.shapes(), (VOCABULARY,))
    weights = {name: tensors[f"{name}.{config.layer}"].astype(np.float32) for name in ("down", "up", "bias")}
    return Exit(config, weights, numbers.get(VOCABULARY))


def check_exit(trained: Exit, manifest: Manifest) -> None:
    """Raise ExportError for an exit of another target, or one that knows tokens which no target has."""
    if trained.config.target.weights != target_id(manifest).weights:
        raise ExportError(
            f"this exit was trained for other weights ({trained.config.target.name}) than this bundle has: train one "
            "for this bundle"
        )
    if trained.vocabulary is not None:
        check_ascending("this exit", VOCABULARY, trained.vocabulary, manifest.target.vocab)

"""The checkpoint folder of a draft head in torch: written whole, and read back as an export reads it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from safetensors.torch import save

from paceline.export.heads.checkpoint import read_trained
from paceline.export.heads.config import CONFIG, WEIGHTS, HeadConfig, Method
from paceline.export.training.heads.clover import Clover
from paceline.export.training.heads.dflash import DFlash
from paceline.export.training.heads.eagle import Eagle
from paceline.export.training.heads.eagle3 import Eagle3
from paceline.export.training.heads.falcon import Falcon
from paceline.export.training.heads.head import DraftHead
from paceline.export.training.heads.hydra import Hydra
from paceline.export.training.heads.kangaroo import Kangaroo
from paceline.export.training.heads.medusa import Medusa
from paceline.runtime.bundle.whole_file import write_atomically

METHODS: dict[Method, type[DraftHead]] = {
    "eagle": Eagle,
    "eagle3": Eagle3,
    "hydra": Hydra,
    "medusa": Medusa,
    "dflash": DFlash,
    "clover": Clover,
    "falcon": Falcon,
    "kangaroo": Kangaroo,
}
"""Every way to draft that there is."""


def new_head(config: HeadConfig) -> DraftHead:
    """A head of this configuration with fresh weights and without a vocabulary."""
    return METHODS[config.method](config)


def save_head(
    head: DraftHead,
    folder: Path,
    acceptance: list[float] | None = None,
    ranks: list[list[float]] | None = None,
) -> None:
    """Write the folder, each file whole or not at all. acceptance, ranks: replace those of the configuration."""
    config = head.config
    if acceptance is not None:
        config = msgspec.structs.replace(config, acceptance=acceptance)
    if ranks is not None:
        config = msgspec.structs.replace(config, ranks=ranks)
    state = {name: value.contiguous().cpu() for name, value in head.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state), private=False)
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    write_atomically(folder / CONFIG, text + b"\n", private=False)


def load_head(folder: Path) -> DraftHead:
    """The head of a folder that was trained here. Raises ExportError with one line."""
    found = read_trained(folder)
    head = new_head(found.config)
    weights = {name: torch.from_numpy(values) for name, values in found.weights.items()}
    head.load_state_dict({**weights, "vocabulary": torch.from_numpy(found.vocabulary)})
    head.know(torch.from_numpy(found.vocabulary))
    return head

"""The checkpoint folder of a draft head: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from paceline.export.training.heads.config import HeadConfig, Method, read_config, write_config
from paceline.export.training.heads.eagle3 import Eagle3
from paceline.export.training.heads.head import DraftHead
from paceline.export.training.heads.hydra import Hydra
from paceline.export.training.heads.medusa import Medusa
from paceline.runtime.bundle.whole_file import write_atomically

WEIGHTS = "model.safetensors"
METHODS: dict[Method, type[DraftHead]] = {"eagle3": Eagle3, "hydra": Hydra, "medusa": Medusa}
"""Every way to draft that there is."""


def new_head(config: HeadConfig) -> DraftHead:
    """A head of this configuration with fresh weights and without a vocabulary."""
    return METHODS[config.method](config)


def save_head(head: DraftHead, folder: Path, acceptance: list[float] | None = None) -> None:
    """Write the folder, each file whole or not at all. acceptance: replaces that of the configuration."""
    config = head.config
    if acceptance is not None:
        config = msgspec.structs.replace(config, acceptance=acceptance)
    state = {name: value.contiguous().cpu() for name, value in head.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state), private=False)
    write_config(config, folder)


def load_head(folder: Path) -> DraftHead:
    """The head of a folder. Raises ValueError with one line: missing and unexpected tensors, or wrong shapes."""
    head, path = new_head(read_config(folder)), folder / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): train the head again") from None
    own = head.state_dict()
    for what, names in (("lacks", own.keys() - state.keys()), ("has", state.keys() - own.keys())):
        if names:
            raise ValueError(
                f"{path} {what} {', '.join(sorted(names)[:5])}: it is not what {folder} describes"
            )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ValueError(
                f"{path}: {name} is {list(state[name].shape)}, not {list(value.shape)}: "
                f"it is not what {folder} describes"
            )
    head.load_state_dict(state)
    head.know(head.vocabulary.clone())
    return head.to(torch.float32)

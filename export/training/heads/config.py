"""What a draft head is: `config.json` of its checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from paceline.runtime.bundle.whole_file import write_atomically

CONFIG = "config.json"
Method = Literal["eagle3", "hydra", "medusa"]


class TargetId(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The target that a head was trained for: the name of its bundle, sha256 of its graph and of its weights."""

    name: str
    graph: str
    data: str


class HeadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a head. taps: of the target, side by side in this order; vocab: rows of its own vocabulary.

    Medusa has neither attention nor a layer: `heads` to `rope_theta` mean nothing there.
    """

    paceline_head: Literal[1] = 1
    """The version of this layout."""
    method: Method
    hidden: int
    target_vocab: int
    taps: list[str]
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    rope_theta: float
    epsilon: float
    depth: int
    """The most levels that it drafts."""
    tied: bool
    """Its embedding is also its LM head, but for the row of unknown tokens."""
    target: TargetId
    acceptance: list[float] = []
    """Of greedy drafts, by level, where all levels before were right; measured on held-out answers."""


def read_config(folder: Path) -> HeadConfig:
    """The configuration of a checkpoint folder. Raises ValueError with one line."""
    path = folder / CONFIG
    try:
        return msgspec.json.decode(path.read_bytes(), type=HeadConfig)
    except FileNotFoundError:
        raise ValueError(f"no draft head at {folder}: make one with 'paceline train head'") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no configuration of a draft head ({error}): train the head again"
        ) from None


def write_config(config: HeadConfig, folder: Path) -> None:
    """Write it whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    write_atomically(folder / CONFIG, text + b"\n", private=False)

"""`config.json` of the checkpoint folder of a draft head, read and written as it is trained."""

from __future__ import annotations

from pathlib import Path

import msgspec

from paceline.export.heads.config import CONFIG as CONFIG
from paceline.export.heads.config import HeadConfig as HeadConfig
from paceline.export.heads.config import Method as Method
from paceline.export.heads.config import TargetId as TargetId
from paceline.runtime.bundle.whole_file import write_atomically


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

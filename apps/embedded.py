"""Where the bundle that ships inside the package lies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NAME = "storyteller"


def embedded_bundle() -> Path:
    """The folder of the storyteller, used where no bundle is named."""
    return Path(str(files("paceline").joinpath(NAME)))

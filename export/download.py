"""Fetching a model from the Hugging Face hub: configuration, tokenizer and weights, nothing that runs."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from paceline.export.errors import ExportError
from paceline.export.gguf.parts import part_names

_ID = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?\Z")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*"]
_ABOUT = ["README.md", "LICENSE*"]
_UNWANTED = ["*/*", "consolidated*.safetensors"]


def download(source: str, revision: str | None, file: str | None = None) -> Path:
    """Return the folder of a hub id, fetched or from the cache: a model, or one GGUF file of it. Raises ExportError."""
    if source.endswith(".gguf"):
        raise ExportError(f"{source}: there is no such file")
    if not _ID.match(source):
        raise ExportError(f"{source}: there is no such folder, and it is not a hub id (OWNER/NAME)")
    wanted, unwanted = (_WANTED, _UNWANTED) if file is None else ([*part_names(file), *_ABOUT], [])
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted)
        )
    except RepositoryNotFoundError:
        raise ExportError(
            f"{source}: neither a folder here nor a model on the hub that you may read"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ExportError(f"{source}: the hub refused it: {str(error).strip().splitlines()[0]}") from None
    except (LocalEntryNotFoundError, OSError):
        raise ExportError(
            f"{source}: no such folder, and the hub cannot be reached (check the network)"
        ) from None

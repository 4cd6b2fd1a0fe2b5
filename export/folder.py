"""The folder of a checkpoint: found, or fetched, and looked over before anything in it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from paceline.export.download import download
from paceline.export.errors import ExportError
from paceline.runtime.bundle.place import leads_out

TEMPLATES = "additional_chat_templates"
"""The one folder inside a checkpoint that transformers reads."""
_BOUNDS = {".json": 2**24, ".jinja": 2**24, ".txt": 2**28, ".model": 2**28, ".tiktoken": 2**28}
_LARGER = {"tokenizer.json": 2**28, "vocab.json": 2**28, "tekken.json": 2**28}
"""Bytes; weights have no bound."""
_FRONT = 2**16
"""Characters of a README that may hold its front matter."""
_POINTER = 1024


def find_folder(source: str, revision: str | None = None, file: str | None = None) -> Path:
    """The folder of a model, the one that is named or that of a hub id, in which nothing leads out.

    file: the GGUF file of it that is wanted, fetched alone from a hub. Raises ExportError, whose message is one line.
    """
    folder = Path(source)
    if folder.is_file():
        raise ExportError(f"{source} is a file: name the folder of the model")
    if not folder.is_dir():
        folder = download(source, revision, file)
    elif revision is not None:
        raise ExportError(f"{source} is a folder, and folders have no revision")
    if (folder / "adapter_config.json").is_file():
        raise ExportError(f"{folder} is an adapter (LoRA): merge it into its model and export that")
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Raise ExportError where a file of a checkpoint could make its reader open another one outside the folder.

    Links may lead into the blobs of a hub's cache only; what is not hidden is a folder or a regular file, of a size
    that its kind can have; the index of the shards names files of the folder.
    """
    root = folder.resolve()
    try:
        entries = sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")])
    except OSError as error:
        raise ExportError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None
    for path in entries:
        if not path.name.startswith("."):
            _check_entry(path, root)
    for path in entries:
        if path.name.endswith(".index.json"):
            _check_index(path)


def check_pointer(path: Path) -> None:
    """Raise ExportError where git left a pointer in the place of a large file."""
    if path.stat().st_size < _POINTER and path.read_bytes().startswith(b"version https://git-lfs"):
        raise ExportError(
            f"{path} is a pointer of git-lfs in place of the file: run 'git lfs pull' in its folder"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint, empty where the file is absent. Raises ExportError for anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error}): fetch it again") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds a JSON {type(found).__name__} and no object: fetch it again")
    return found


def _check_entry(path: Path, root: Path) -> None:
    if leads_out(path, root):
        raise ExportError(
            f"{path} is a link to a place outside the folder: replace it by a copy, or remove it"
        )
    if path.is_dir():
        return
    if not path.is_file():
        raise ExportError(f"{path} is neither a file nor a folder: remove it")
    check_pointer(path)
    size = path.stat().st_size
    most = _LARGER.get(path.name, _BOUNDS.get(path.suffix))
    if most is not None and size > most:
        raise ExportError(
            f"{path} has {size} bytes, more than such a file can have ({most}): fetch it again, or remove it"
        )


def _check_index(path: Path) -> None:
    """The shards that an index names stand beside it."""
    names = read_json(path).get("weight_map")
    for name in names.values() if isinstance(names, dict) else ():
        if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in "/\\\0:"):
            raise ExportError(
                f"{path} names {str(name)[:80]!r}, which is not the name of a file in this folder: "
                "do not use this checkpoint"
            )


def licence_of(folder: Path) -> str:
    """What its README says in the front matter, else its config.json, else "unknown"."""
    readme = folder / "README.md"
    if readme.is_file():
        with readme.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_FRONT)
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^licen[sc]e:\s*(\S.*?)\s*$", front.group(1), re.MULTILINE) if front else None
        if found:
            return found.group(1).strip("'\"")
    said = read_json(folder / "config.json").get("license")
    return said if isinstance(said, str) and said else "unknown"

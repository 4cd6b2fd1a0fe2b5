"""Which GGUF file a source means, if it means one."""

from __future__ import annotations

from pathlib import Path

from paceline.export.errors import ExportError
from paceline.export.folder import check_pointer, find_folder
from paceline.export.gguf.reader import first_parts
from paceline.runtime.bundle.place import leads_out

_PATTERN = "*?[]\\\0:"


def find_gguf(source: str, revision: str | None, file: str | None) -> Path | None:
    """The file that is named, or the only one of a folder without safetensors; None for a folder of Hugging Face.

    file: its name in a folder or a hub id, the first part of a split one. Raises ExportError.
    """
    if file is not None:
        return _named(source, revision, file)
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ExportError(f"{source} is a file: name the folder of the model, or a GGUF file")
        if revision is not None:
            raise ExportError(f"{source} is a file, and files have no revision")
        check_pointer(path)
        return path
    if not path.is_dir():
        folder = find_folder(source, revision)
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*config.json")):
            raise ExportError(
                f"{source} has no safetensors weights: if it holds GGUF files, name one with --file NAME.gguf"
            )
        return None
    files = [] if any(path.glob("*.safetensors")) else first_parts(path)
    models = [one for one in files if not one.name.lower().startswith("mmproj")] or files
    if len(models) > 1:
        names = ", ".join(one.name for one in models[:8])
        raise ExportError(f"{source} holds {len(models)} GGUF models ({names}): name one with --file")
    if models:
        find_folder(source, revision)
    return models[0] if models else None


def _named(source: str, revision: str | None, file: str) -> Path:
    if Path(source).is_file():
        raise ExportError(f"{source} is a file itself: leave --file out, or name its folder")
    parts = Path(file).parts
    plain = not Path(file).is_absolute() and ".." not in parts and not any(mark in file for mark in _PATTERN)
    if not plain or Path(file).suffix.lower() != ".gguf":
        raise ExportError(f"--file {file} is not the name of a GGUF file inside {source}")
    folder = find_folder(source, revision, file)
    path = folder / file
    if not path.is_file():
        held = ", ".join(one.name for one in first_parts(folder)[:8]) or "none"
        raise ExportError(f"{source} has no file {file} (GGUF files there: {held})")
    if leads_out(path, folder.resolve()):
        raise ExportError(f"{path} is a link to a place outside the folder: replace it by a copy")
    check_pointer(path)
    return path

"""Opens a bundle: checks every file against the manifest, reads what is needed to run it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from paceline.runtime.manifest import BundleError, File, Generation, Manifest, read_manifest

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are what its manifest says."""

    folder: Path
    manifest: Manifest
    generation: Generation

    def path(self, name: str) -> Path:
        """A file of the bundle."""
        return self.folder / name


def open_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError with one line that names the file and the remedy."""
    folder = folder.expanduser()
    manifest = read_manifest(folder)
    _verify(folder, manifest)
    return Bundle(folder, manifest, _generation(folder / "generation.json"))


def _generation(path: Path) -> Generation:
    if not path.is_file():
        return Generation()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Generation)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path}: {error}; export the model again") from None


def _verify(folder: Path, manifest: Manifest) -> None:
    """Compare sizes and digests; a digest is remembered by path, size and time, so a second start is quick."""
    remembered = _Remembered()
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        _check_file(path, root, name, expected)
        stamp = path.stat()
        key = f"{path.resolve()}|{stamp.st_size}|{stamp.st_mtime_ns}|{stamp.st_ino}"
        if remembered.get(key) == expected.sha256:
            continue
        if _digest(path) != expected.sha256:
            raise BundleError(
                f"{path} is damaged (its sha256 is not the manifest's): fetch or export the bundle again"
            )
        remembered.put(key, expected.sha256)
    remembered.save()


def _check_file(path: Path, root: Path, name: str, expected: File) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing: fetch or export the bundle again")
    inside = path.resolve()
    # A model hub's cache keeps a snapshot as links into the `blobs` folder two levels up; nothing else may link out.
    if not inside.is_relative_to(root) and not inside.is_relative_to(root.parent.parent / "blobs"):
        raise BundleError(f"{path} is a link to a place outside the bundle: copy the file into the bundle")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {expected.bytes}: fetch or export the bundle again"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


class _Remembered:
    """Digests of files seen before, in the user's cache folder; losing it costs only time."""

    def __init__(self) -> None:
        self._path = cache_folder() / "verified.json"
        self._changed = False
        try:
            found = json.loads(self._path.read_text())
            self._digests: dict[str, str] = {str(k): str(v) for k, v in found.items()}
        except (OSError, ValueError, AttributeError, RecursionError):
            self._digests = {}

    def get(self, key: str) -> str | None:
        return self._digests.get(key)

    def put(self, key: str, digest: str) -> None:
        self._digests[key] = digest
        self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        while len(self._digests) > 512:
            del self._digests[next(iter(self._digests))]
        try:
            write_atomically(self._path, json.dumps(self._digests).encode())
        except OSError:
            return  # a read-only home only means hashing again next time


def cache_folder() -> Path:
    """Where the user's caches live: `PACELINE_CACHE`, else the XDG cache folder."""
    if own := os.environ.get("PACELINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

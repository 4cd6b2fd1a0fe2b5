"""Opens a bundle: checks every file against the manifest, reads what is needed to run it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from paceline.runtime.bundle.generation import GENERATION, read_generation
from paceline.runtime.bundle.place import leads_out
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import MANIFEST, BundleError, File, Generation, Manifest, read_manifest

_CHUNK = 1 << 22
_NEVER_READ = re.compile(r"\.|(README|LICEN[CS]E|NOTICE)(\.(md|txt))?\Z")


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
    try:
        folder = folder.expanduser()
    except RuntimeError:
        raise BundleError(
            f"no bundle at {folder}: there is no such home folder; write the path out"
        ) from None
    manifest = read_manifest(folder)
    _check_place(folder / MANIFEST, folder.resolve())
    _refuse_unlisted(folder, manifest)
    _verify(folder, manifest)
    return Bundle(folder, manifest, read_generation(folder / GENERATION))


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Refuse every file and link without a digest, so that whatever is read later was verified.

    Passed over are only names that nothing reads: at the top what is hidden and READMEs and licences, and the
    `.DS_Store` that a desktop leaves anywhere. Weights are out of their reach: ONNX Runtime reads none outside
    the folder of the graph, and a graph is never at the top.
    """
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        place = Path(root)
        top = place == folder
        folders[:] = [name for name in folders if not (top and name.startswith("."))]
        links = [name for name in folders if (place / name).is_symlink()]
        for name in (*links, *files):
            listed = (place / name).relative_to(folder).as_posix()
            passed = name == ".DS_Store" or (top and (name == MANIFEST or _NEVER_READ.match(name)))
            if listed not in manifest.files and not passed:
                raise BundleError(
                    f"{folder / listed!s:.500} is not in the manifest, so it cannot be verified: "
                    "remove it, or fetch or export the bundle again"
                )


def _unreadable(error: OSError) -> None:
    raise BundleError(f"{error.filename} cannot be read ({error.strerror}): check its permissions")


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
    _check_place(path, root)
    size = path.stat().st_size
    if size != expected.bytes:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {expected.bytes}: fetch or export the bundle again"
        )


def _check_place(path: Path, root: Path) -> None:
    if leads_out(path, root):
        raise BundleError(f"{path} is a link to a place outside the bundle: copy the file into the bundle")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


class _Remembered:
    """Digests of files seen before, in the user's cache folder; losing it costs only time."""

    def __init__(self) -> None:
        folder = cache_folder()
        self._path = None if folder is None else folder / "verified.json"
        self._changed = False
        self._digests: dict[str, str] = {}
        if self._path is None:
            return
        try:
            found = json.loads(self._path.read_text())
            self._digests = {str(k): str(v) for k, v in found.items()}
        except (OSError, ValueError, AttributeError, RecursionError):
            return

    def get(self, key: str) -> str | None:
        return self._digests.get(key)

    def put(self, key: str, digest: str) -> None:
        self._digests[key] = digest
        self._changed = True

    def save(self) -> None:
        if not self._changed or self._path is None:
            return
        while len(self._digests) > 512:
            del self._digests[next(iter(self._digests))]
        try:
            write_atomically(self._path, json.dumps(self._digests).encode())
        except OSError:
            return  # a read-only home only means hashing again next time


def cache_folder() -> Path | None:
    """Where the user's caches live: `PACELINE_CACHE`, else the XDG cache folder; None for a user without home."""
    if own := os.environ.get("PACELINE_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"
    except RuntimeError:
        return None

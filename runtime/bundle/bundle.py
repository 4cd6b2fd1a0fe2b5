"""Opens a bundle: checks every file against the manifest, reads what is needed to run it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paceline.runtime.bundle.admission import admit, read_graph
from paceline.runtime.bundle.draft_ids import Ids, read_ids
from paceline.runtime.bundle.generation import GENERATION, Generation, read_generation
from paceline.runtime.bundle.measurements import keep_all, read_all
from paceline.runtime.bundle.place import leads_out
from paceline.runtime.manifest import MANIFEST, BundleError, File, Manifest, Part, read_manifest
from paceline.runtime.part import first_layers
from paceline.runtime.split import halves

_CHUNK = 1 << 22
_NEVER_READ = re.compile(r"\.|(README|LICEN[CS]E|NOTICE)(\.(md|txt))?\Z")
_DEEPEST = 8
"""Folders in each other."""
_VERIFIED, _KEPT = "verified.json", 512


class Stamp(NamedTuple):
    """What changes with a file; the time of its last change of any kind can be set back by nobody but root."""

    bytes: int
    modified: int
    changed: int
    number: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """Of a file by what the system says about it."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are what its manifest says. stamps: of every file as it was verified.

    guests: folders of other bundles whose models draft for this one, by their names. The paths of their parts begin
    with `../NAME/`, which no manifest may write.
    """

    folder: Path
    manifest: Manifest
    generation: Generation
    stamps: dict[str, Stamp] = field(default_factory=dict)
    guests: dict[str, Path] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A file of the bundle, or of a guest."""
        if name.startswith("../"):
            guest, _, inner = name[3:].partition("/")
            return self.guests[guest] / inner
        return self.folder / name

    def read_graph(self, name: str) -> bytes:
        """The content of a graph file. Raises BundleError if it is not that of the manifest any more."""
        raw = read_graph(self.path(name))
        if hashlib.sha256(raw).hexdigest() != self.manifest.files[name].sha256:
            raise _damaged(self.path(name))
        return raw

    def draft_ids(self, part: Part) -> Ids:
        """int64[vocab]: the target's ids that the columns of a head's scores stand for. Raises BundleError."""
        if part.vocabulary is None:
            return np.arange(part.vocab)
        ids = read_ids(self.path(part.vocabulary), part, self.manifest.target.vocab)
        self.confirm(part.vocabulary)
        return ids

    def confirm(self, *names: str) -> None:
        """Raise BundleError if files that were read since the bundle was opened are not the ones that were verified."""
        for name in names:
            if name in self.manifest.files:
                path, known = self.path(name), self.stamps.get(name)
                if known is None or Stamp.of(path.stat()) != known:
                    _verify_digest(path, self.manifest.files[name])


def open_bundle(folder: Path, reread: bool = False) -> Bundle:
    """Read and verify a bundle. Raises BundleError with one line that names the file and the remedy.

    reread: also files that were verified before and have not changed since.
    """
    try:
        folder = folder.expanduser()
    except RuntimeError:
        raise BundleError(
            f"no bundle at {folder}: there is no such home folder; write the path out"
        ) from None
    manifest = read_manifest(folder)
    _refuse_unlisted(folder, manifest)
    stamps = _verify(folder, manifest, reread)
    generation = read_generation(folder / GENERATION, manifest.target.vocab)
    return Bundle(folder, manifest, generation, stamps)


def _refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Refuse every file and link without a digest, so that whatever is read later was verified.

    Passed over are only names at the top that nothing reads: what is hidden, READMEs and licences. A graph and its
    weights are never at the top, and weights are read from the part's own file alone.
    """
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        for entry in _entries(place):
            listed = Path(entry.path).relative_to(folder).as_posix()
            hidden = depth == 0 and entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                if depth == _DEEPEST:
                    raise BundleError(
                        f"{folder} holds more than {_DEEPEST} folders in each other: fetch or export the bundle again"
                    )
                if not hidden:
                    waiting.append((Path(entry.path), depth + 1))
            elif listed not in manifest.files and (depth > 0 or not _passed(entry)):
                raise BundleError(
                    f"{folder / listed!s:.500} is not in the manifest, so it cannot be verified: "
                    "remove it, or fetch or export the bundle again"
                )


def _passed(entry: os.DirEntry[str]) -> bool:
    # Desktops and package managers link other files of a bundle hard, but nothing links this one.
    if entry.name == ".DS_Store" and entry.stat(follow_symlinks=False).st_nlink > 1:
        return False
    return entry.name == MANIFEST or _NEVER_READ.match(entry.name) is not None


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except OSError as error:
        raise BundleError(
            f"{error.filename} cannot be read ({error.strerror}): check its permissions"
        ) from None


def _verify(folder: Path, manifest: Manifest, reread: bool) -> dict[str, Stamp]:
    """Compare sizes and digests, and look into graphs and vocabularies; a digest is remembered by path and stamp."""
    remembered, found, stamps = read_all(_VERIFIED), {}, {}
    root = folder.resolve()
    parts = (manifest.target, *manifest.drafters.values())
    early = [first_layers(manifest.target, part, layer) for part in parts for layer in part.exits]
    both = () if manifest.target.split is None else halves(manifest.target)
    graphs = {graph: part for part in (*parts, *early, *both) for graph in part.graphs}
    vocabularies = {part.vocabulary: part for part in parts}
    for name, expected in manifest.files.items():
        path = folder / name
        stamp = stamps[name] = _check_file(path, root, expected)
        key = "|".join(map(str, (path.resolve(), *stamp)))
        if remembered.get(key) == expected.sha256 and not reread:
            continue
        _verify_digest(path, expected)
        if name in graphs:
            admit(read_graph(path), graphs[name], path)
        if name in vocabularies:
            read_ids(path, vocabularies[name], manifest.target.vocab)
        found[key] = expected.sha256
    if found:
        keep_all(_VERIFIED, found, _KEPT)
    return stamps


def _check_file(path: Path, root: Path, expected: File) -> Stamp:
    if not path.is_file():
        raise BundleError(f"{path} is missing: fetch or export the bundle again")
    if leads_out(path, root):
        raise BundleError(f"{path} is a link to a place outside the bundle: copy the file into the bundle")
    stamp = Stamp.of(path.stat())
    if stamp.bytes != expected.bytes:
        raise BundleError(
            f"{path} has {stamp.bytes} bytes, the manifest says {expected.bytes}: fetch or export the bundle again"
        )
    return stamp


def _verify_digest(path: Path, expected: File) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if digest.hexdigest() != expected.sha256:
        raise _damaged(path)


def _damaged(path: Path) -> BundleError:
    return BundleError(
        f"{path} is damaged (its sha256 is not the manifest's): fetch or export the bundle again"
    )

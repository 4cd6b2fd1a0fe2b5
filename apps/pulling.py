"""How a model comes into the store: fetched piece by piece beside its place, verified, and then there in one step."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paceline.hub import Listed, PullError, Reference, Repository, fetch
from paceline.inspect import size
from paceline.store import Source, check_name, folder_bytes, models_folder, unfinished_folder

Tell = Callable[[int, int], None]
"""Takes the bytes that are there and all of them."""
_GGUF = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,180}\.gguf\Z", re.IGNORECASE)
_MARGIN = 1 << 24
"""Bytes of the disk that a download leaves free."""
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to fetch. path: in the repository's subfolder; sha256: None where nobody knows it."""

    path: str
    bytes: int
    sha256: str | None

    @property
    def key(self) -> str:
        """The name that it grows under: the same content is the same file, whatever the commit."""
        return self.sha256 or hashlib.sha256(f"{self.path} {self.bytes}".encode()).hexdigest()


@contextmanager
def growing(name: str) -> Iterator[Path]:
    """The folder where the download of a name grows, for one process at a time. Raises PullError, OSError.

    It is kept as long as it holds anything.
    """
    work = unfinished_folder(name)
    work.mkdir(parents=True, exist_ok=True)
    handle = None
    try:
        with suppress(ImportError):  # Windows
            import fcntl

            handle = os.open(work, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullError(f"{name} is being pulled already: wait for the other process") from None
            except OSError:  # a file system without locks
                pass
        yield work
    finally:
        if handle is not None:
            os.close(handle)
        for place in (*(Path(place) for place, _, _ in os.walk(work, topdown=False)), work.parent):
            with suppress(OSError):
                place.rmdir()  # where it is empty


def bundle_within(repository: Repository, work: Path, old: Path, tell: Tell) -> Path:
    """Fetch the bundle of a repository's subfolder, all that its manifest lists and nothing else, and verify it.

    old: a bundle whose files are used where they are the same. Raises PullError.
    """
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.manifest import LARGEST, MANIFEST, BundleError, read_manifest

    place, listed, bundle = repository.reference.place, repository.within(), work / "bundle"
    if listed[MANIFEST].bytes > LARGEST:
        raise PullError(f"{place}: its {MANIFEST} has {listed[MANIFEST].bytes} bytes, more than one can have")
    bundle.mkdir(exist_ok=True)
    (bundle / MANIFEST).unlink(missing_ok=True)
    fetch(repository, MANIFEST, listed[MANIFEST].bytes, bundle / MANIFEST)
    try:
        files = read_manifest(bundle).files
    except BundleError as error:
        (bundle / MANIFEST).unlink()
        raise PullError(_elsewhere(error, bundle, place)) from None
    pieces = [Piece(path, file.bytes, file.sha256) for path, file in files.items()]
    _check_pieces(pieces, listed, place)
    _sweep(bundle, {MANIFEST, *files})
    _take_over(old, bundle, pieces)
    _fetch_all(repository, work, {bundle / piece.path: piece for piece in pieces}, tell)
    try:
        open_bundle(bundle, reread=True)
    except BundleError as error:
        shutil.rmtree(bundle)
        raise PullError(_elsewhere(error, bundle, place)) from None
    return bundle


def _elsewhere(error: Exception, folder: Path, place: str) -> str:
    """What is wrong with a bundle, said of where it came from."""
    return (
        f"{place} cannot be used: {str(error).replace(f'{folder}{os.sep}', '').replace(str(folder), place)}"
    )


def _check_pieces(pieces: list[Piece], listed: Mapping[str, Listed], place: str) -> None:
    """The manifest is that of these files. Raises PullError."""
    from paceline.runtime.manifest import MANIFEST

    paths = {PurePosixPath(piece.path) for piece in pieces}
    for piece in pieces:
        path = PurePosixPath(piece.path)
        if piece.path == MANIFEST or str(path) != piece.path or paths.intersection(path.parents):
            raise PullError(f"{place}: its manifest lists {piece.path!r}, which no bundle has: do not use it")
        there = listed.get(piece.path)
        if there is None:
            raise PullError(
                f"{place}: its manifest lists {piece.path}, which is not there: the upload is incomplete, or the "
                "manifest another bundle's; tell its owner"
            )
        if there.bytes != piece.bytes or (there.sha256 or piece.sha256) != piece.sha256:
            raise PullError(
                f"{place}: {piece.path} is not the file of its manifest ({there.bytes} bytes there, {piece.bytes} in "
                "the manifest, or another content): tell its owner"
            )


def _sweep(folder: Path, wanted: set[str]) -> None:
    """Remove what an earlier download of something else left."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()  # where it is empty
        elif path.relative_to(folder).as_posix() not in wanted:
            path.unlink()


def _take_over(old: Path, bundle: Path, pieces: list[Piece]) -> None:
    """Link files of the version that is there already, or copy them, where they have not changed."""
    from paceline.runtime.manifest import BundleError, read_manifest

    try:
        known = {file.sha256: old / path for path, file in read_manifest(old).files.items()}
    except (BundleError, OSError):
        return
    for piece in pieces:
        same, to = known.get(piece.sha256 or ""), bundle / piece.path
        if same is None or to.exists() or same.is_symlink():
            continue
        with suppress(OSError):
            if same.stat().st_size == piece.bytes and _digest(same) == piece.sha256:
                to.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(same, to)
                except OSError:
                    shutil.copyfile(same, to)


def _fetch_all(repository: Repository, work: Path, wanted: Mapping[Path, Piece], tell: Tell) -> None:
    """Bring files to their places, each once it is what it should be. Raises PullError, OSError of the disk."""
    parts = work / "parts"
    parts.mkdir(exist_ok=True)
    _sweep(parts, {piece.key for piece in wanted.values()})
    done = sum(piece.bytes for to, piece in wanted.items() if _is_there(to, piece))
    total = sum(piece.bytes for piece in wanted.values())
    grown = sum(path.stat().st_size for path in parts.iterdir())
    _check_room(work, total - done - grown)
    tell(done + grown, total)
    for to, piece in wanted.items():
        if _is_there(to, piece):
            continue
        before = done

        def told(bytes: int, before: int = before) -> None:
            tell(before + bytes, total)

        part = parts / piece.key
        while True:
            resumed = fetch(repository, piece.path, piece.bytes, part, told)
            if piece.sha256 is None or _digest(part) == piece.sha256:
                break
            part.unlink()
            if not resumed:  # else what came earlier may be what is wrong
                raise PullError(
                    f"{repository.reference.place}: {piece.path} did not arrive as it should (its sha256 is another): "
                    "pull again; if it stays so, tell its owner"
                )
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, to)
        done += piece.bytes
    shutil.rmtree(parts)


def _is_there(path: Path, piece: Piece) -> bool:
    """Whether a file was brought to its place before; it was verified then."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size == piece.bytes


def _check_room(work: Path, needed: int) -> None:
    free = shutil.disk_usage(work).free
    if needed + _MARGIN > free:
        raise PullError(
            f"{size(needed)} are still to come and {size(free)} are free at {models_folder()}: free some, or set "
            "PACELINE_MODELS to a folder on another disk"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gguf_within(repository: Repository, file: str | None, work: Path, tell: Tell) -> Path:
    """Fetch a GGUF model, all its parts; the first one. file: which, where there are several. Raises PullError."""
    from paceline.export.gguf.parts import part_names

    listed, place = repository.within(), repository.reference.place
    first = which_gguf(repository, file)
    folder, _, name = first.rpartition("/")
    paths = [f"{folder}/{part}" if folder else part for part in part_names(name)]
    if missing := [path for path in paths if path not in listed]:
        raise PullError(
            f"{place}: {missing[0]} is missing, a part of {first}: choose another file with --file"
        )
    pieces = [Piece(path, listed[path].bytes, listed[path].sha256) for path in paths]
    home = work / "gguf"
    home.mkdir(exist_ok=True)
    wanted = {home / piece.path.rpartition("/")[2]: piece for piece in pieces}
    _sweep(home, {path.name for path in wanted})
    _fetch_all(repository, work, wanted, tell)
    return next(iter(wanted))


def which_gguf(repository: Repository, file: str | None) -> str:
    """The path of the GGUF model that is meant, of its first part. Raises PullError."""
    from paceline.export.gguf.parts import is_first, part_names

    place = repository.reference.place
    found = [path for path in repository.within() if _GGUF.match(path.rpartition("/")[2]) and is_first(path)]
    if file is not None:
        folder, _, name = file.rpartition("/")
        first = f"{folder}/{part_names(name)[0]}" if folder else part_names(name)[0]
        if first not in found:
            raise PullError(f"{place} has no GGUF file {file} ({_some(repository, found) or 'none at all'})")
        return first
    models = [path for path in found if not path.rpartition("/")[2].lower().startswith("mmproj")]
    if len(models) > 1:
        raise PullError(
            f"{place} has {len(models)} GGUF models ({_some(repository, models)}): name one with --file"
        )
    return models[0]


def _some(repository: Repository, paths: list[str]) -> str:
    listed = repository.within()
    shown = [f"{path} {size(listed[path].bytes)}" for path in paths[:12]]
    return ", ".join(shown) + (", ..." if len(paths) > 12 else "")


def kind_of(repository: Repository, file: str | None) -> str:
    """`bundle` or `gguf`: what is to be fetched. Raises PullError that says what a repository is that has neither."""
    from paceline.runtime.manifest import MANIFEST

    reference, files = repository.reference, repository.within()
    if file is not None:
        return "gguf"
    if MANIFEST in files:
        return "bundle"
    if any(_GGUF.match(path.rpartition("/")[2]) for path in files):
        return "gguf"
    raise PullError(f"{reference.place} {_what_it_is(reference, repository, files)}")


def _what_it_is(reference: Reference, repository: Repository, files: Mapping[str, Listed]) -> str:
    from paceline.runtime.manifest import MANIFEST

    if not repository.files:
        return "holds no files yet: check the name"
    if not files:
        folders = sorted({path.rpartition("/")[0] for path in repository.files if "/" in path})
        held = f"the folders {', '.join(folders[:8])}" if folders else "no folders"
        return f"is not there: {reference.repository} has {held}"
    if bundles := sorted(path for path in files if path.endswith(f"/{MANIFEST}")):
        within = ", ".join(f"{reference.place}/{path.rpartition('/')[0]}" for path in bundles[:8])
        return f"holds bundles in folders: name one of {within}"
    if "adapter_config.json" in files:
        return "is an adapter (LoRA): merge it into its model, and export that"
    if any(path.endswith(".safetensors") for path in files):
        return (
            "is a checkpoint (safetensors) and no bundle: "
            f"'paceline export {reference.repository} OUT' makes one, with 'paceline[export]' installed"
        )
    if any(path.endswith((".bin", ".pt", ".pth")) for path in files):
        return "has pickled weights only, which are never read: look for one with safetensors or GGUF files"
    return f"is no model that can run here: {len(files)} files, none of them {MANIFEST} or GGUF"


def source_of(repository: Repository, file: str | None, pulled: str) -> Source:
    """What is kept of where a model came from."""
    reference = repository.reference
    return Source(reference.repository, reference.subfolder, repository.commit, file, pulled)


def remove(name: str) -> int:
    """Remove a model and what was fetched of it; the bytes that were freed. Raises PullError, OSError.

    A link in the store goes, what it leads to stays.
    """
    place = models_folder() / check_name(name)
    with growing(name) as work:
        if place.is_symlink():
            place.unlink()
        elif place.is_dir():
            aside = work / "removed"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(place, aside)  # gone from the list in one step
        freed = folder_bytes(work)
        shutil.rmtree(work)
    return freed

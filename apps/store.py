"""Models by name: bundles that `paceline pull` fetched, each a folder of the store."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.embedded import NAME as EMBEDDED
from paceline.embedded import embedded_bundle

if TYPE_CHECKING:
    from paceline.runtime.manifest import Manifest

ABOUT = ".source.json"
"""Beside a bundle's files, hidden: where it came from. The reader of bundles passes it over."""
UNFINISHED = ".unfinished"
"""The folder of the store where downloads grow."""
_NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_LARGEST_ABOUT = 1 << 16


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model came from. file: the GGUF that it was made of; pulled: when, in ISO 8601."""

    repository: str
    subfolder: str
    commit: str
    file: str | None
    pulled: str

    @property
    def words(self) -> str:
        """What `pull` was asked for, without the revision."""
        place = f"{self.repository}/{self.subfolder}" if self.subfolder else self.repository
        return f"{place} ({self.file})" if self.file else place


@dataclass(frozen=True, slots=True)
class Model:
    """One that can be named. manifest: None where it cannot be read, and `fault` says why."""

    name: str
    folder: Path
    manifest: Manifest | None
    fault: str
    source: Source | None
    bytes: int


def models_folder() -> Path:
    """Where pulled models live: `PACELINE_MODELS`, else the XDG data folder. Raises ValueError without a home."""
    try:
        if own := os.environ.get("PACELINE_MODELS"):
            return Path(own).expanduser().absolute()
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return Path(data).absolute() / "paceline" / "models"
    except RuntimeError:
        raise ValueError("there is no home folder for models: set PACELINE_MODELS to a folder") from None


def unfinished_folder(name: str) -> Path:
    """Where the download of a name grows."""
    return models_folder() / UNFINISHED / name


def check_name(name: str) -> str:
    """A name that a model may have. Raises ValueError."""
    if not _NAME.match(name):
        raise ValueError(
            f"{name!r:.120} cannot be a model's name: use letters, digits, '.', '_' and '-', beginning with a letter "
            "or a digit"
        )
    if name == EMBEDDED:
        raise ValueError(f"{EMBEDDED} is the model that ships inside the package: choose another with --name")
    return name


def names() -> list[str]:
    """Names in the store, in order."""
    try:
        with os.scandir(models_folder()) as entries:
            return sorted(e.name for e in entries if _NAME.match(e.name) and e.is_dir())
    except (OSError, ValueError):
        return []


def unfinished() -> dict[str, int]:
    """Names of downloads that did not end, and the bytes that they hold."""
    try:
        with os.scandir(models_folder() / UNFINISHED) as entries:
            found = sorted(e.name for e in entries if _NAME.match(e.name) and e.is_dir(follow_symlinks=False))
    except (OSError, ValueError):
        return {}
    return {name: size for name in found if (size := folder_bytes(unfinished_folder(name)))}


def find(name: str) -> Path | None:
    """The folder of a model by its name; the embedded one has a name, too."""
    if not _NAME.match(name):
        return None
    if name == EMBEDDED:
        return embedded_bundle()
    try:
        folder = models_folder() / name
    except ValueError:
        return None
    return folder if folder.is_dir() else None


def near(name: str) -> list[str]:
    """Names that may have been meant, the likeliest first."""
    known = {known.casefold(): known for known in [EMBEDDED, *names()]}
    close = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.6)
    within = [low for low in known if len(name) > 2 and name.casefold() in low and low not in close]
    return [known[low] for low in [*close, *within][:3]]


def chosen_bundle(bundle: str | Path | None) -> str | Path:
    """The bundle that is meant: none is the embedded one; a folder wins over a name of the store.

    What is neither is given back as it is, for whoever opens it to refuse. Raises BundleError where a name was
    probably mistyped.
    """
    if bundle is None:
        return embedded_bundle()
    if not isinstance(bundle, str | Path) or not _NAME.match(str(bundle)) or os.path.lexists(bundle):
        return bundle
    if folder := find(str(bundle)):
        return folder
    if meant := near(str(bundle)):
        from paceline.runtime.manifest import BundleError

        raise BundleError(
            f"no bundle {bundle}: neither a folder here nor a model of 'paceline list'; did you mean "
            f"{' or '.join(meant)}? 'paceline pull OWNER/REPO' fetches more"
        )
    return bundle


def offered_bundles(incomplete: str) -> list[str]:
    """What Tab offers for a bundle: names, and folders, whose last part may be incomplete."""
    offered = [name for name in (EMBEDDED, *names()) if name.startswith(incomplete)]
    parent, _, last = incomplete.rpartition("/")
    place = f"{parent}/" if parent or incomplete.startswith("/") else ""
    try:
        with os.scandir(os.path.expanduser(place) or ".") as entries:
            folders = [e.name for e in entries if e.name.startswith(last) and e.is_dir()]
    except OSError:
        return offered
    hidden = last.startswith(".")
    return [*offered, *(f"{place}{name}/" for name in sorted(folders) if hidden or not name.startswith("."))]


def models() -> Iterator[Model]:
    """The embedded model, then every one of the store."""
    yield read_model(EMBEDDED, embedded_bundle())
    for name in names():
        yield read_model(name, models_folder() / name)


def read_model(name: str, folder: Path) -> Model:
    """What a folder says about itself; its files are not verified."""
    from paceline.runtime.manifest import BundleError, read_manifest

    manifest, fault = None, ""
    try:
        manifest = read_manifest(folder)
    except (BundleError, OSError) as error:
        fault = str(error)
    return Model(name, folder, manifest, fault, read_source(folder), folder_bytes(folder))


def read_source(folder: Path) -> Source | None:
    """Where a model came from, if that is known."""
    import msgspec

    path = folder / ABOUT
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_ABOUT:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Source)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_source(folder: Path, source: Source) -> None:
    """Keep where a model comes from beside its files."""
    import msgspec

    from paceline.runtime.bundle.whole_file import write_atomically

    write_atomically(folder / ABOUT, msgspec.json.encode(source) + b"\n", private=False)


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder; links are not followed."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(place, file)).st_size
            except OSError:  # went while it was counted
                continue
    return total

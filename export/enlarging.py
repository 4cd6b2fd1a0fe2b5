"""A finished bundle is given parts: how each way to do so begins and ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from paceline.export.atomic import check_free
from paceline.export.caches import link
from paceline.export.opening import check_opens
from paceline.export.order import check_name
from paceline.export.report import Report, files_in
from paceline.export.static.dropping import notes_on_static
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.manifest import MANIFEST, SCHEMA, File, Manifest, Part, write_manifest


def open_for(bundle: Path, names: Iterable[str], out: Path, force: bool) -> Bundle:
    """A finished bundle that is to be given drafters of these names, at `out`.

    Raises ValueError for a name that cannot be, or that a drafter has, and for an `out` that is there; BundleError for
    a bundle that is damaged.
    """
    names = set(names)
    for name in names:
        check_name(name)
    check_free(out, force)
    opened = open_bundle(bundle)
    if taken := sorted(opened.manifest.drafters.keys() & names):
        raise ValueError(f"{bundle} has a drafter {taken[0]!r} already: choose another name for the new one")
    return opened


def take_files(bundle: Path, manifest: Manifest, work: Path) -> None:
    """Every file of a bundle but its manifest, under another name or as a copy; of a hub's cache what links lead to."""
    notes = [path.name for path in bundle.iterdir() if path.is_file() and path.name[0] != "."]
    for name in dict.fromkeys([*manifest.files, *notes]):
        if name != MANIFEST:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            link(os.path.realpath(bundle / name), str(work / name))


def new_files(work: Path, folders: Iterable[Path]) -> dict[str, File]:
    """The files in these folders of a bundle that is being made, by their paths in it."""
    return {path: file for folder in folders for path, file in files_in(folder, work).items()}


def finish(
    old: Manifest,
    work: Path,
    files: Mapping[str, File],
    *,
    target: Part | None = None,
    drafters: Mapping[str, Part] | None = None,
    acceptance: Mapping[str, float] | None = None,
) -> Manifest:
    """Write the manifest of a bundle with parts and files that are new, or in place of old ones of the same names.

    Files of before that are gone are left out. Raises ExportError where the bundle does not open.
    """
    kept = {path: file for path, file in old.files.items() if (work / path).exists()}
    manifest = msgspec.structs.replace(
        old,
        schema=SCHEMA,
        target=target or old.target,
        drafters={**old.drafters, **(drafters or {})},
        acceptance={**old.acceptance, **(acceptance or {})},
        files=dict(sorted({**kept, **files}.items())),
    )
    write_manifest(manifest, work)
    check_opens(work, old)
    return manifest


def told(out: Path, old: Manifest, manifest: Manifest, started: float) -> Report:
    """What was made of an old bundle since `started` (`time.monotonic`), without its parts."""
    size = sum(file.bytes for file in manifest.files.values())
    seconds = time.monotonic() - started
    return Report(out, manifest, {}, size, seconds, notes_on_static(old, manifest))

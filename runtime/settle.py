"""What the user asked for, checked against the bundle and the machine before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from paceline.memory.errors import ArgumentError
from paceline.runtime.assemble import Settings, context_limit
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.model.device import find_device
from paceline.runtime.model.processors import default_threads


def settle(
    bundle: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    max_nodes: int | None = None,
    draft_depth: int | None = None,
    device: str = "cpu",
    device_draft: str | None = None,
    suffix_store: str | Path | None = None,
    cache: str | None = None,
    overflow: str = "stop",
) -> tuple[Bundle, Settings]:
    """Open and verify a bundle and settle how it is to run.

    Raises BundleError (the bundle), ValueError (an argument), DeviceError (a device).
    """
    for name, value, least in (
        ("context", context, 1),
        ("threads", threads, 1),
        ("max_nodes", max_nodes, 1),
        ("draft_depth", draft_depth, 1),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentError(f"{name} must be a whole number, not {value!r:.40}")
        if value < least:
            raise ArgumentError(f"{name} must be {least} or more, not {value}")
    for name, word in (("device", device), ("device_draft", device_draft), ("cache", cache)):
        if word is not None and not isinstance(word, str):
            raise ArgumentError(f"{name} must be a name, not {word!r:.40}")
    for name, path in (("the bundle", bundle), ("suffix_store", suffix_store)):
        if path is not None and not isinstance(path, str | Path):
            raise ArgumentError(f"{name} must be a path, not {path!r:.40}")
    if overflow not in ("stop", "slide"):
        raise ArgumentError(f"overflow is stop or slide, not {overflow!r:.40}")
    if threads is not None and threads > (most := 4 * (os.cpu_count() or 1)):
        raise ArgumentError(
            f"{threads} threads on {os.cpu_count()} cores only wait for each other: use {most} or fewer"
        )
    opened = open_bundle(Path(bundle))
    where = find_device(device)
    settings = Settings(
        context_limit(opened.manifest.target, context),
        threads or default_threads(),
        max_nodes or 16,
        draft_depth,
        where,
        find_device(device_draft) if device_draft else where,
        None if suffix_store is None else Path(suffix_store),
        cache_form(opened.manifest, cache),
        overflow=overflow,
    )
    return opened, settings

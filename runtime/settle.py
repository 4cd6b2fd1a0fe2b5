"""How a bundle is to run: the choices of a load, checked against the bundle and this machine."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from paceline.memory.budget import check_scope
from paceline.memory.errors import ArgumentError
from paceline.memory.room import Room
from paceline.runtime.arguments import path
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.guests import with_guest
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.drafters.branches import WORTH
from paceline.runtime.drafters.names import goes_beside
from paceline.runtime.drafters.words import AUTO
from paceline.runtime.model.processors import default_threads
from paceline.runtime.model.providers import add_library
from paceline.runtime.options import Options, flags_of
from paceline.runtime.places import Places
from paceline.runtime.profiles import as_run
from paceline.runtime.settings import Settings, context_limit


def opened(options: Options) -> Bundle:
    """The bundle, verified, with the draft models of another one where it was named. `options.bundle` must be there.

    Raises BundleError (a bundle), ArgumentError (a choice), DeviceError (a provider library).
    """
    _check(options)
    found = open_bundle(Path(options.bundle or ""))
    if options.drafter_bundle is not None:
        found = with_guest(found, open_bundle(Path(options.drafter_bundle)))
    if options.provider_library is not None:
        add_library(options.provider_library)
    return found


def settled(options: Options, bundle: Bundle, places: Places) -> tuple[Bundle, Settings]:
    """The bundle as it runs on these devices, and what it runs with. Raises ArgumentError (a choice)."""
    bundle = as_run(bundle, places, options.profile)
    nodes = options.max_nodes or 16
    settings = Settings(
        context=context_limit(bundle.manifest.target, options.context),
        threads=options.threads or default_threads(),
        room=Room(nodes=nodes, depth=options.draft_depth or nodes),
        draft_depth=options.draft_depth,
        places=places,
        suffix_store=None if options.suffix_store is None else Path(options.suffix_store),
        cache=cache_form(bundle.manifest, options.cache),
        overflow=options.overflow or "stop",
        growth=options.tree,
        adapt=options.adapt == "on",
        mirror=options.mirror != "off",
        branches=options.mirror_branches or ("exit" if _splits(bundle) else "weight"),
    )
    return bundle, _with_mirror(settings, bundle, options.mirror)


def _splits(bundle: Bundle) -> bool:
    """Whether the target can run in two graphs. Static ones are whole."""
    return bundle.manifest.target.split is not None and bundle.manifest.target.static is None


def _with_mirror(settings: Settings, bundle: Bundle, wish: str) -> Settings:
    """The same, with the mirror off where `auto` leaves it to what can be. Raises ArgumentError for what cannot."""
    if not settings.mirror:
        return settings
    if settings.branches == "exit" and not _splits(bundle):
        raise ArgumentError(
            f"{bundle.folder} has no split, whose first half could say what may follow: leave --mirror-branches exit "
            "out, or make one with 'paceline export BUNDLE OUT --split'"
        )
    if wish == "auto" and not goes_beside(AUTO, bundle.manifest.drafters):
        return replace(
            settings, mirror=False, mirrored="off, this bundle has nothing that could go on beside the model"
        )
    if settings.threads > 1:
        return settings
    if wish == "auto":
        return replace(settings, mirror=False, mirrored="off, one thread")
    raise ArgumentError(
        "the mirror takes a thread of its own: give --threads 2 or more, or leave --mirror on out"
    )


def _check(options: Options) -> None:
    """Types and ranges of the choices, as their flags have them."""
    optional = {field.name for field in fields(options) if field.default is None}
    for name, flag in flags_of(type(options)).items():
        value = getattr(options, name)
        if value is None and name in optional:
            continue
        if flag.least is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name} must be a whole number, not {value!r:.40}")
            if value < flag.least or (flag.most is not None and value > flag.most):
                legal = f"{flag.least} or more" if flag.most is None else f"from {flag.least} to {flag.most}"
                raise ArgumentError(f"{name} must be {legal}, not {value}")
        elif name in ("bundle", "drafter_bundle", "suffix_store"):
            path(name, value)
        elif not isinstance(value, str) and name != "memory":
            raise ArgumentError(f"{name} must be a name, not {value!r:.40}")
    check_scope(options.memory_scope)
    if (
        options.suffix_store is not None
        and not (folder := Path(options.suffix_store).absolute().parent).is_dir()
    ):
        raise ArgumentError(f"suffix store {options.suffix_store}: there is no folder {folder}")
    if options.overflow not in (None, "stop", "slide"):
        raise ArgumentError(f"overflow is stop or slide, not {options.overflow!r:.40}")
    if options.adapt not in ("on", "off"):
        raise ArgumentError(f"adapt is on or off, not {options.adapt!r:.40}")
    if options.mirror not in ("on", "off", "auto"):
        raise ArgumentError(f"mirror is on, off or auto, not {options.mirror!r:.40}")
    if options.mirror_branches not in (None, *WORTH):
        raise ArgumentError(
            f"mirror_branches is one of {', '.join(WORTH)}, not {options.mirror_branches!r:.40}"
        )
    if options.mirror_branches is not None and options.mirror == "off":
        raise ArgumentError(
            "--mirror-branches says what is drafted beside the target: give --mirror on or auto too, or leave it out"
        )
    if options.profile not in ("auto", "static"):
        raise ArgumentError(f"profile is auto or static, not {options.profile!r:.40}")
    if options.tree not in ("dynamic", "static"):
        raise ArgumentError(f"tree is dynamic or static, not {options.tree!r:.40}")
    if options.threads is not None and options.threads > (most := 4 * (os.cpu_count() or 1)):
        raise ArgumentError(
            f"{options.threads} threads on {os.cpu_count()} cores only wait for each other: use {most} or fewer"
        )

"""In what form a session keeps its caches: what the user asked for, or what costs no quality."""

from __future__ import annotations

from typing import get_args

from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.memory.errors import ArgumentError
from paceline.runtime.manifest import BundleError, Manifest, Part

_HARMLESS: CacheFormat = "fp16"
"""The most sparing form that changed no perplexity by 0.05 % where it was measured: see docs/performance.md."""


def cache_form(manifest: Manifest, asked: str | None) -> CacheFormat:
    """The form for all parts but drafters with static graphs, which keep theirs in fp32.

    None is fp16 in a bundle whose parts all have it, else fp32.

    Raises ValueError for a word that is none, BundleError for a form that some part has no graph for.
    """
    drafters = {f"drafter {n}": p for n, p in manifest.drafters.items() if p.static is None}
    parts = {"the target": manifest.target, **drafters}
    if asked is None:
        return _HARMLESS if _HARMLESS in forms_of(manifest) else "fp32"
    form = next((form for form in get_args(CacheFormat) if form == asked), None)
    if form is None:
        raise ArgumentError(f"there is no cache of {asked[:40]!r}: use {', '.join(get_args(CacheFormat))}")
    if lacking := [name for name, part in parts.items() if not part.has_form(form)]:
        raise BundleError(
            f"{manifest.name} has no graph for a cache of {form} ({lacking[0]}): "
            "use --cache fp32 (in Python: cache='fp32'), or export the model again with this version"
        )
    checked: CacheFormat = form
    return checked


def forms_of(manifest: Manifest) -> tuple[CacheFormat, ...]:
    """The forms that every part has a graph for, the most exact first."""
    parts = [manifest.target, *(part for part in manifest.drafters.values() if part.static is None)]
    forms: tuple[CacheFormat, ...] = get_args(CacheFormat)
    return tuple(form for form in forms if all(part.has_form(form) for part in parts))


def row_bytes(part: Part) -> dict[str, int]:
    """Bytes of one token's keys and values in a part, by the forms that it has a graph for."""
    forms = [form for form in get_args(CacheFormat) if part.has_form(form)]
    return {form: KeyValueCache.row_bytes(part.layers, part.kv_heads, part.head_dim, form) for form in forms}

"""In what form a session keeps its caches: what the user asked for, or what costs no quality."""

from __future__ import annotations

from typing import get_args

from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.memory.errors import ArgumentError
from paceline.runtime.manifest import BundleError, Manifest, Part

_HARMLESS: CacheFormat = "fp16"
"""The most sparing form that changed no perplexity by 0.05 % where it was measured: see docs/performance.md."""


def cache_form(manifest: Manifest, asked: str | None) -> CacheFormat:
    """The form for all parts but drafters with static graphs, which keep theirs. Static graphs of the target have one.

    None is fp16 in a bundle whose parts all have it, else fp32.

    Raises ValueError for a word that is none, BundleError for a form that some part has no graph for.
    """
    there = forms_of(manifest)
    if asked is None:
        return _HARMLESS if _HARMLESS in there else "fp32"
    form = next((form for form in get_args(CacheFormat) if form == asked), None)
    if form is None:
        raise ArgumentError(f"there is no cache of {asked[:40]!r}: use {', '.join(get_args(CacheFormat))}")
    checked: CacheFormat = form
    if checked not in there:
        raise BundleError(_refusal(manifest, checked))
    return checked


def _refusal(manifest: Manifest, form: CacheFormat) -> str:
    """Why a bundle does not run over a cache of this form, and what does."""
    if (static := manifest.target.static) is not None and static.type != form:
        bits = {"fp32": "float32", "fp16": "16 bits"}[static.type]
        again = ", or export the model again with --static-type fp16" if form == "fp16" else ""
        return f"the static graphs of {manifest.name} keep their cache in {bits}: leave --cache {form} out{again}"
    most = next(iter(forms_of(manifest)), "fp32")
    return (
        f"{manifest.name} has no graph for a cache of {form} ({_lacking(manifest, form)}): "
        f"use --cache {most} (in Python: cache={most!r}), or export the model again with this version"
    )


def forms_of(manifest: Manifest) -> tuple[CacheFormat, ...]:
    """The forms that every part has a graph for, the most exact first."""
    forms: tuple[CacheFormat, ...] = get_args(CacheFormat)
    return tuple(form for form in forms if not _lacking(manifest, form))


def _lacking(manifest: Manifest, form: CacheFormat) -> str:
    """The first part that has no graph for this form, "" where all have one."""
    target = manifest.target
    has = target.has_form(form) if target.static is None else form == target.static.type
    drafters = (
        name for name, part in manifest.drafters.items() if part.static is None and not part.has_form(form)
    )
    return "the target" if not has else next((f"drafter {name}" for name in drafters), "")


def row_bytes(part: Part) -> dict[str, int]:
    """Bytes of one token's keys and values in a part, by the forms that it has a graph for."""
    forms = [form for form in get_args(CacheFormat) if part.has_form(form)]
    return {form: KeyValueCache.row_bytes(part.layers, part.kv_heads, part.head_dim, form) for form in forms}

"""Models of one bundle that draft for another one, with which they were never exported."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec

from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import RESERVED_NAMES, TOKENIZER, BundleError, Part

_OTHERS = re.compile(r"[^a-z0-9._-]+")
_LONGEST = 64


def with_guest(bundle: Bundle, guest: Bundle) -> Bundle:
    """The bundle with the guest's target and draft models as draft models of its own.

    They are called as the guest is, and NAME.MODEL, and come before the bundle's own, the smallest one first. Raises
    BundleError where the guest is the bundle itself.
    """
    if bundle.folder.resolve() == guest.folder.resolve():
        raise BundleError(
            f"{guest.folder} is the bundle itself, which cannot draft for itself: name another one"
        )
    taken = {*bundle.manifest.drafters, *bundle.guests, *RESERVED_NAMES}
    name = _free(guest.manifest.name, taken)
    found: dict[str, Part] = {}
    models = {name: guest.manifest.target}
    models |= {f"{name}.{inner}": part for inner, part in guest.manifest.drafters.items()}
    for wished, part in sorted(models.items(), key=lambda item: item[1].parameters):
        if part.kind == "decoder":
            found[_free(wished, taken.union(found) - {name})] = _moved(part, name)
    manifest = msgspec.structs.replace(
        bundle.manifest,
        drafters=found | bundle.manifest.drafters,
        files=bundle.manifest.files
        | {f"../{name}/{path}": file for path, file in guest.manifest.files.items()},
    )
    stamps = bundle.stamps | {f"../{name}/{path}": stamp for path, stamp in guest.stamps.items()}
    return replace(bundle, manifest=manifest, stamps=stamps, guests=bundle.guests | {name: guest.folder})


def _free(wished: str, taken: set[str]) -> str:
    """A name in letters that `--drafter` takes, and that nothing else has."""
    base = _OTHERS.sub("-", wished.lower()).strip("._-")[:_LONGEST] or "guest"
    numbered = (f"{base[: _LONGEST - 5]}-{number}" for number in range(2, 1000))
    return next(name for name in (base, *numbered) if name not in taken)


def _moved(part: Part, name: str) -> Part:
    """A part whose files, its tokenizer among them, are found in the guest's folder."""

    def there(path: str) -> str:
        return f"../{name}/{path}"

    return msgspec.structs.replace(
        part,
        graph=there(part.graph),
        caches={form: there(path) for form, path in part.caches.items()},
        drafts={levels: there(path) for levels, path in part.drafts.items()},
        training=None if part.training is None else there(part.training),
        tokenizer=there(part.tokenizer or TOKENIZER),
    )

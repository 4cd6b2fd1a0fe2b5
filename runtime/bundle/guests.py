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

    They are called as the guest is, and NAME.MODEL. Raises BundleError where no model of the guest can draft.
    """
    name = _named(guest.manifest.name, bundle)
    found = {
        name if part is guest.manifest.target else f"{name}.{inner}"[:_LONGEST]: _moved(part, name)
        for inner, part in {"": guest.manifest.target, **guest.manifest.drafters}.items()
        if part.kind == "decoder"
    }
    manifest = msgspec.structs.replace(
        bundle.manifest,
        drafters=bundle.manifest.drafters | found,
        files=bundle.manifest.files
        | {f"../{name}/{path}": file for path, file in guest.manifest.files.items()},
    )
    stamps = bundle.stamps | {f"../{name}/{path}": stamp for path, stamp in guest.stamps.items()}
    return replace(bundle, manifest=manifest, stamps=stamps, guests=bundle.guests | {name: guest.folder})


def _named(name: str, bundle: Bundle) -> str:
    """What a guest is called: its own name in letters that `--drafter` takes."""
    base = _OTHERS.sub("-", name.lower()).strip("._-")[: _LONGEST // 2] or "guest"
    taken = {*bundle.manifest.drafters, *bundle.guests, *RESERVED_NAMES}
    return next(n for n in (base, *(f"{base}-{i}" for i in range(2, 1000))) if n not in taken)


def _moved(part: Part, name: str) -> Part:
    """A part whose files are found in the guest's folder; it gives no taps here, and has the guest's tokenizer."""

    def there(path: str) -> str:
        return f"../{name}/{path}"

    return msgspec.structs.replace(
        part,
        graph=there(part.graph),
        caches={form: there(path) for form, path in part.caches.items()},
        drafts={levels: there(path) for levels, path in part.drafts.items()},
        training=None if part.training is None else there(part.training),
        tokenizer=there(TOKENIZER),
    )


def check_guest(bundle: Bundle, guest: Bundle) -> None:
    """Raise BundleError where the guest is the bundle itself."""
    if bundle.folder.resolve() == guest.folder.resolve():
        raise BundleError(
            f"{guest.folder} is the bundle itself, which cannot draft for itself: name another one"
        )

"""The cache of a session in a file, so that a long text need not be read again.

File (little endian): magic, version, sha256 of what the cache depends on (graph, weights, tokenizer), the form's name,
planes, heads, head size, tokens, bytes of one number; the tokens (uint32 each); each plane's rows head by head; the
scales of an int8 cache likewise; and the sha256 of everything before it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paceline.memory.buckets import BucketCache
from paceline.memory.cache import KeyValueCache
from paceline.memory.errors import ArgumentError
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.whole_file import whole_file
from paceline.runtime.manifest import TOKENIZER
from paceline.runtime.model.model import Model
from paceline.runtime.model.rope import frequencies, reach, step_of

_MAGIC = b"paceline cache\0\0"
_VERSION = 1
_HEAD = struct.Struct("<16sB32s8sIIIQI")
_DIGEST = 32
_BLOCK = 1 << 20


def save_cache(path: Path, bundle: Bundle, model: Model) -> int:
    """Write the committed rows; returns the bytes of the file.

    Raises ValueError, with every file as it was, where the place holds something else or cannot be written.
    """
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder: give a file name")
    try:
        if path.exists() and not _is_cache(path):
            raise ArgumentError(
                f"{path} holds something else than a saved cache and was left alone: choose another name"
            )
        digest = hashlib.sha256()
        with whole_file(path) as file:
            first: list[bytes | memoryview] = [
                _head(bundle, model, model.length, model.step),
                _ids(model.tokens),
            ]
            for piece in [*first, *_rows(_held(model), model.length)]:
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
            return file.tell()
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error.strerror}") from None


def load_cache(path: Path, bundle: Bundle, model: Model) -> int:
    """Read rows into a model's cache in place of its own; returns how many.

    All is checked before the cache is touched. Raises ValueError, one line, where the file is damaged, was made with
    another bundle or another form of cache, or holds more than the context.
    """
    try:
        if not path.is_file():
            raise ArgumentError(f"there is no saved cache at {path}")
        with path.open("rb") as file:
            tokens, step = _check(file, path, bundle, model)
            if model.part.rope is not None:
                model.prepare(reach(model.part.rope, step, model.part.context))
            model.rewind(0)
            if isinstance(model.cache, BucketCache):
                model.cache.reach(len(tokens))
            file.seek(_HEAD.size + 4 * len(tokens))
            for rows in _rows(_held(model), len(tokens)):
                if file.readinto(rows) != len(rows):
                    raise ArgumentError(f"{path} changed while it was read: try again")
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror}") from None
    model.tokens.extend(tokens)
    return len(tokens)


def _check(file: BinaryIO, path: Path, bundle: Bundle, model: Model) -> tuple[list[int], int]:
    """The tokens of a file that is whole and fits this session, and the step of their rotary frequencies."""
    raw = file.read(_HEAD.size)
    if len(raw) < _HEAD.size or not raw.startswith(_MAGIC):
        raise ArgumentError(f"{path} is no saved cache")
    _, version, mark, form, *_, count, _ = _HEAD.unpack(raw)
    if version > _VERSION:
        raise ArgumentError(f"{path} was saved by a newer paceline (form {version}): upgrade to read it")
    if version < _VERSION:
        raise ArgumentError(f"{path} is damaged: its version is {version}")
    steps = range(1 if model.part.rope is None else step_of(model.part.rope, model.part.context) + 1)
    step = next((step for step in steps if mark == _mark(bundle, model, step)), None)
    if step is None:
        raise ArgumentError(f"{path} was saved with another bundle than {bundle.manifest.name} as it is here")
    if form.rstrip(b"\0") != model.cache.form.encode():
        said = form.rstrip(b"\0").decode("ascii", "replace")
        raise ArgumentError(
            f"{path} holds an {said} cache and this session has {model.cache.form}: "
            f"start with --cache {said} (in Python: cache={said!r})"
            if said in ("fp32", "fp16", "int8")
            else f"{path} is damaged: it names no form of cache"
        )
    if raw != _head(bundle, model, count, step):
        raise ArgumentError(f"{path} is damaged: its sizes are not those of the bundle")
    if count > model.context:
        raise ArgumentError(
            f"{path} holds {count} tokens and the context {model.context}: raise --context (in Python: context=)"
        )
    row = KeyValueCache.row_bytes(
        model.part.layers, model.part.kv_heads, model.part.head_dim, model.cache.form
    )
    size = _HEAD.size + count * (4 + row)
    if file.seek(0, 2) != size + _DIGEST:
        raise ArgumentError(f"{path} is damaged: it has {file.tell()} bytes and not {size + _DIGEST}")
    file.seek(0)
    digest = hashlib.sha256()
    while left := size - file.tell():
        digest.update(file.read(min(left, _BLOCK)))
    if file.read() != digest.digest():
        raise ArgumentError(f"{path} is damaged: its checksum is wrong")
    file.seek(_HEAD.size)
    tokens: list[int] = np.frombuffer(file.read(4 * count), "<u4").tolist()
    if tokens and max(tokens) >= model.part.vocab:
        raise ArgumentError(f"{path} is damaged: token {max(tokens)} is outside the vocabulary")
    return tokens, step


def _held(model: Model) -> KeyValueCache:
    cache = model.cache.held if isinstance(model.cache, BucketCache) else model.cache
    if not isinstance(cache, KeyValueCache):
        raise ArgumentError(
            "the cache lies on a device, from which it is not saved: run the target on the cpu"
        )
    return cache


def _is_cache(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _mark(bundle: Bundle, model: Model, step: int) -> bytes:
    files, part = bundle.manifest.files, model.part
    names = (part.graph, part.data, TOKENIZER)
    digest = hashlib.sha256("|".join(files[n].sha256 if n in files else "" for n in names).encode())
    if part.rope is not None:
        inverse, scale = frequencies(part.rope, reach(part.rope, step, part.context))
        digest.update(np.append(inverse, scale).astype("<f4").tobytes())
    return digest.digest()


def _head(bundle: Bundle, model: Model, rows: int, step: int) -> bytes:
    cache = _held(model)
    planes, heads, _, size = cache.stack.shape
    mark, form = _mark(bundle, model, step), cache.form.encode()
    return _HEAD.pack(_MAGIC, _VERSION, mark, form, planes, heads, size, rows, cache.stack.itemsize)


def _ids(tokens: list[int]) -> bytes:
    return np.array(tokens, "<u4").tobytes()


def _rows(cache: KeyValueCache, count: int) -> Iterator[memoryview]:
    """The first rows of every plane and head as bytes, to be written or to be filled."""
    held: list[Any] = [cache.stack] + ([] if cache.scales is None else [cache.scales[..., None]])
    for array in held:
        for plane in array:
            for head in plane:
                if count:
                    yield memoryview(head[:count].view(np.uint8).reshape(-1))

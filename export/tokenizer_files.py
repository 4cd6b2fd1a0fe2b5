"""The text side of a bundle: tokenizer, chat template, sampling defaults, and whether vocabularies agree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from paceline.export.attention import ExportError
from paceline.export.folder import read_json
from paceline.runtime.manifest import Generation

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation.json"


def write_tokenizer(folder: Path, out: Path) -> Tokenizer:
    """Write tokenizer.json from a Hugging Face folder; older layouts are converted. Raises ExportError."""
    if (folder / TOKENIZER).is_file():
        shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    else:
        _convert(folder, out / TOKENIZER)
    return read_tokenizer(out)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json of a folder. Raises ExportError."""
    try:
        return Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing narrower
        raise ExportError(f"{folder / TOKENIZER} cannot be read: {error}") from None


def _convert(folder: Path, path: Path) -> None:
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        made.backend_tokenizer.save(str(path))
    except (OSError, ValueError, ImportError, AttributeError, TypeError, KeyError) as error:
        raise ExportError(
            f"{folder} has no {TOKENIZER} and none can be made from its other files "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): "
            "save the tokenizer with transformers as a fast one first"
        ) from None


def chat_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder: its own file, or the field (the one named "default")."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return None


_COLDEST = 1e-3
"""Authors write a temperature below this where they mean greedy decoding."""


def generation_defaults(folder: Path, tokenizer: Tokenizer) -> Generation:
    """End-of-sequence ids, and the sampling defaults if the model's authors ask for sampling.

    The ids come from generation_config.json, else config.json, else the tokenizer's end token.
    """
    given, config = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    sources = (given, config, config.get("text_config") or {})
    ids = next((ids for s in sources if (ids := _ids(s.get("eos_token_id")))), [])
    if not ids:
        name = token_text(read_json(folder / "tokenizer_config.json").get("eos_token"))
        known = tokenizer.token_to_id(name) if name else None
        ids = [] if known is None else [known]
    settings = read_json(folder / "tokenizer_config.json")
    bos, eos = (token_text(settings.get(name)) or None for name in ("bos_token", "eos_token"))
    temperature = _number(given, "temperature", 1.0)
    penalty = _number(given, "repetition_penalty", 1.0)  # counts without sampling too
    if given.get("do_sample") is not True or temperature < _COLDEST:
        return Generation(eos_ids=ids, bos_token=bos, eos_token=eos, repetition_penalty=penalty)
    return Generation(
        eos_ids=ids,
        bos_token=bos,
        eos_token=eos,
        temperature=temperature,
        top_k=int(_number(given, "top_k", 0)),
        top_p=_number(given, "top_p", 1.0),
        min_p=_number(given, "min_p", 0.0),
        repetition_penalty=penalty,
    )


def write_text_files(folder: Path, out: Path) -> Tokenizer:
    """Write tokenizer.json, generation.json and, if there is one, chat_template.jinja. Raises ExportError."""
    tokenizer = write_tokenizer(folder, out)
    template = chat_template(folder)
    if template is not None:
        (out / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    generation = generation_defaults(folder, tokenizer)
    (out / GENERATION).write_bytes(msgspec.json.format(msgspec.json.encode(generation), indent=2) + b"\n")
    return tokenizer


def first_difference(target: Tokenizer, drafter: Tokenizer) -> str | None:
    """Where two vocabularies contradict each other, in words, or None if one can draft for the other.

    Tokens or ids that only one of them has (padding, extra special tokens) are no contradiction.
    """
    ours, theirs = target.get_vocab(), drafter.get_vocab()
    by_id = {i: token for token, i in ours.items()}
    smaller = sorted(theirs.items(), key=lambda item: item[1])
    shared = 0
    for token, i in smaller:
        here = by_id.get(i)
        if here is not None and here != token:
            return f"id {i} is {token!r} there and {here!r} in the target"
        if ours.get(token, i) != i:
            return f"{token!r} is id {i} there and {ours[token]} in the target"
        shared += here is not None
    if shared < min(len(ours), len(theirs)) // 2:
        return f"only {shared} tokens are in both"
    return None


def token_text(value: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a string or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _number(source: dict[str, Any], name: str, default: float) -> float:
    value = source.get(name)
    return default if value is None else float(value)

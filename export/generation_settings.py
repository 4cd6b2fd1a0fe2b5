"""What a checkpoint says of choosing tokens and of ends, as `generation.json` says it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from paceline.export.folder import read_json
from paceline.runtime.bundle.generation import GENERATION, Generation, Phrase, sampling_of
from paceline.runtime.request import validate

_COLDEST = 1e-3
"""Authors write a temperature below this where they mean greedy decoding."""
_NEUTRAL: tuple[object, ...] = (None, False, 0, 1, "", [], {})
_LEFT_OUT = (
    "min_length",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "penalty_alpha",
    "dola_layers",
    "guidance_scale",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "constraints",
    "watermarking_config",
    "stop_strings",
    "max_time",
    "max_new_tokens",
)
"""Keys of generation_config.json that change an answer in transformers and have no counterpart here."""
_LEFT_OUT_SAMPLING = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
_FORCED = ("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids")


def generation_of(
    folder: Path, rows: int | None, end: int | None, bos: str | None, eos: str | None
) -> tuple[Generation, list[str]]:
    """The settings of a checkpoint's folder, and in words what of them was left out.

    rows: ids of the model, None where they are not known. end, bos, eos: the tokenizer's own end and the texts of
    its two tokens. An answer ends at the ids of generation_config.json (else of config.json), and at the tokenizer's.
    """
    given, config = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    sources = (given, config, config.get("text_config") or {})
    ids = next((ids for s in sources if (ids := _ids(s.get("eos_token_id"), rows))), [])
    ids += _ids(end, rows)
    notes = [
        f"generation_config.json: {name} is not supported here and was left out"
        for name in _unsupported(given)
    ]
    if (said := given.get("eos_token_id")) is not None and not _ids(said, rows):
        notes.append(_odd("eos_token_id", said))
    settings: dict[str, Any] = {}
    wanted = _numbers(given, notes) | _rules(given, ids, rows, notes)
    for name, value in wanted.items():
        made = Generation(**settings, **{name: value})
        try:
            validate(sampling_of(made), rows)
        except ValueError as error:
            notes.append(f"generation_config.json: {error}; it was left out")
        else:
            settings[name] = value
    return Generation(eos_ids=list(dict.fromkeys(ids)), bos_token=bos, eos_token=eos, **settings), notes


def write_generation(folder: Path, out: Path, end: int | None, bos: str | None, eos: str | None) -> list[str]:
    """Write generation.json to `out`; in words what of the settings in `folder` was left out."""
    rows = read_json(folder / "config.json").get("vocab_size")
    generation, notes = generation_of(
        folder, rows if isinstance(rows, int) and rows > 0 else None, end, bos, eos
    )
    (out / GENERATION).write_bytes(msgspec.json.format(msgspec.json.encode(generation), indent=2) + b"\n")
    return notes


def _unsupported(given: dict[str, Any]) -> Iterable[str]:
    sampled = _LEFT_OUT_SAMPLING if _samples(given) else ()
    yield from (name for name in (*_LEFT_OUT, *sampled) if given.get(name) not in _NEUTRAL)
    yield from (name for name in _FORCED if given.get(name) is not None)


def _samples(given: dict[str, Any]) -> bool:
    return given.get("do_sample") not in (None, False, 0)


def _numbers(given: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Temperature, truncation and the penalties, in the words of transformers and of other tools."""

    def number(name: str, default: float) -> float:
        value = given.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            notes.append(f"generation_config.json: {name} is {str(value)[:40]!r}, no number; it was left out")
            return default
        return float(value)

    found: dict[str, Any] = {}
    temperature = number("temperature", 1.0) if _samples(given) else 0.0
    if temperature < 0:
        notes.append(_odd("temperature", temperature))
    if temperature >= _COLDEST:
        top_k, top_p = number("top_k", 0), number("top_p", 1.0)
        if top_p <= 0:  # transformers keeps the likeliest
            top_k, top_p = 1, 1.0
        found = {
            "temperature": temperature,
            "top_k": min(max(int(top_k), 0), 2**31 - 1),  # -1 is off elsewhere
            "top_p": min(top_p, 1.0),
            "min_p": number("min_p", 0.0),
        }
    return found | {  # these count without sampling too
        "repetition_penalty": number("repetition_penalty", 1.0),
        "frequency_penalty": number(
            "frequency_penalty", 0.0
        ),  # unknown to transformers; 'train lm' writes it
        "presence_penalty": number("presence_penalty", 0.0),
    }


def _rules(given: dict[str, Any], ends: list[int], rows: int | None, notes: list[str]) -> dict[str, Any]:
    """What forbids or favours single tokens and runs of tokens."""
    phrases: list[Phrase] = []
    for words in _list(given, "bad_words_ids", notes):
        if (tokens := _run(words, rows)) is None:
            notes.append(_odd("bad_words_ids", words))
        elif tokens != ends[:1]:
            phrases.append(Phrase(tokens))
    for pair in _list(given, "sequence_bias", notes):
        run, bias = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if (tokens := _run(run, rows)) is None or isinstance(bias, bool) or not isinstance(bias, int | float):
            notes.append(_odd("sequence_bias", pair))
        else:
            phrases.append(Phrase(tokens, float(bias)))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        notes += [_odd(name, token) for token in _list(given, name, notes) if not _is_whole(token)]
    begin, least = _ids(given.get("begin_suppress_tokens"), rows), given.get("min_new_tokens")
    not_before = dict.fromkeys(begin, 1)
    if _is_whole(least) and least > 0:
        not_before |= {token: max(least, not_before.get(token, 0)) for token in ends}
    elif least not in _NEUTRAL:
        notes.append(_odd("min_new_tokens", least))
    found = {
        "banned": _ids(given.get("suppress_tokens"), rows),
        "not_before": not_before,
        "no_repeat_ngram": given.get("no_repeat_ngram_size") or 0,
        "phrases": phrases,
    }
    return {name: value for name, value in found.items() if value}


def _odd(name: str, value: object) -> str:
    return f"generation_config.json: {name} holds {str(value)[:60]}; it was left out"


def _list(given: dict[str, Any], name: str, notes: list[str]) -> list[Any]:
    value = given.get(name)
    if value is None or isinstance(value, list):
        return value or []
    notes.append(_odd(name, value))
    return []


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _run(value: object, rows: int | None) -> list[int] | None:
    """Token ids in a row; None where one of them is none of the model's, so that they can never follow each other."""
    if not isinstance(value, list):
        return None
    ids = _ids(value, rows)
    return ids if ids and len(ids) == len(value) else None


def _ids(value: Any, rows: int | None) -> list[int]:
    """Token ids of a field that holds one or several; what no row of the model can be is no id."""
    most = 2**24 if rows is None else rows
    values = value if isinstance(value, list) else [value]
    return [v for v in values if _is_whole(v) and 0 <= v < most]

"""What a checkpoint says of choosing tokens and of ends, as `generation.json` says it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paceline.export.folder import read_json
from paceline.runtime.bundle.generation import sampling_of
from paceline.runtime.manifest import Generation, Phrase
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


def _unsupported(given: dict[str, Any]) -> Iterable[str]:
    sampled = _LEFT_OUT_SAMPLING if given.get("do_sample") is True else ()
    yield from (name for name in (*_LEFT_OUT, *sampled) if given.get(name) not in _NEUTRAL)
    yield from (name for name in _FORCED if given.get(name) is not None)


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
    if given.get("do_sample") is True and (temperature := number("temperature", 1.0)) >= _COLDEST:
        top_k, top_p = number("top_k", 0), number("top_p", 1.0)
        if top_p <= 0:  # transformers keeps the likeliest
            top_k, top_p = 1, 1.0
        found = {
            "temperature": temperature,
            "top_k": max(int(top_k), 0),  # -1 is off elsewhere
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
    for words in _list(given.get("bad_words_ids")):
        if (tokens := _ids(words, rows)) and tokens != ends[:1]:
            phrases.append(Phrase(tokens))
    for pair in _list(given.get("sequence_bias")):
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int | float):
            phrases.append(Phrase(_ids(pair[0], rows), float(pair[1])))
        else:
            notes.append(f"generation_config.json: sequence_bias holds {str(pair)[:60]}; it was left out")
    begin, least = _ids(given.get("begin_suppress_tokens"), rows), given.get("min_new_tokens")
    not_before = dict.fromkeys(begin, 1)
    if isinstance(least, int) and least > 0:
        not_before |= {token: max(least, not_before.get(token, 0)) for token in ends}
    found = {
        "banned": _ids(given.get("suppress_tokens"), rows),
        "not_before": not_before,
        "no_repeat_ngram": given.get("no_repeat_ngram_size") or 0,
        "phrases": phrases,
    }
    return {name: value for name, value in found.items() if value}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _ids(value: Any, rows: int | None) -> list[int]:
    """Token ids of a field that holds one or several; what no row of the model can be is no id."""
    most = 2**24 if rows is None else rows
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < most]

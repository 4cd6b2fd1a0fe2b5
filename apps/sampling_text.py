"""How tokens are chosen, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.runtime.request import Sampling

_OFF = {
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "no_repeat_ngram": 0,
}


def sampling_words(sampling: Sampling, accept: str | None = None) -> str:
    """What differs from plain greedy. accept: the rule, told where it matters."""
    words = [f"temperature {sampling.temperature:g}" if sampling.temperature else "greedy"]
    if sampling.temperature and accept:
        words.append(accept)
    for name, off in _OFF.items():
        value = getattr(sampling, name)
        if value != off:
            words.append(f"{name.replace('_', ' ')} {value:g}")
    for name in ("logit_bias", "banned", "not_before", "phrases"):
        if held := getattr(sampling, name):
            words.append(f"{len(held)} {name.replace('_', ' ')}")
    return ", ".join(words)

"""`generation.json` of a bundle: where answers end, and how its authors want tokens chosen."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct

from paceline.memory.errors import ArgumentError
from paceline.runtime.manifest import BundleError, Token
from paceline.runtime.request import Sampling, validate

GENERATION = "generation.json"


class Phrase(Struct, frozen=True, omit_defaults=True):
    """Tokens in a row; `bias` is added to the last one where the others stand before it, None bans it there."""

    tokens: list[Token]
    bias: float | None = None


class Generation(Struct, frozen=True, omit_defaults=True):
    """`generation.json`: end-of-sequence ids and the sampling defaults of the model's authors."""

    eos_ids: list[Token] = []
    bos_token: str | None = None
    """What a chat template writes for `bos_token`; None follows the tokenizer's own rule."""
    eos_token: str | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    banned: list[Token] = []
    not_before: dict[Token, Token] = {}
    """How many tokens an answer must have before it may go on with one of these."""
    no_repeat_ngram: int = 0
    phrases: list[Phrase] = []


def read_generation(path: Path, vocab: int | None = None) -> Generation:
    """Parse the file; without it nothing ends an answer and decoding is greedy.

    vocab: rows of the logits, where they are known: no id may be beyond. Raises BundleError for what is no such file,
    and for choices that no answer could follow.
    """
    if not path.is_file():
        return Generation()
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Generation)
        validate(sampling_of(found), vocab)
    except ArgumentError as error:
        raise BundleError(f"{path}: {error}; export the model again") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}): export the model again") from None
    return found


def sampling_of(generation: Generation) -> Sampling:
    """The choices that hold where the user made none."""
    g = generation
    return Sampling(
        temperature=g.temperature,
        top_k=g.top_k,
        top_p=g.top_p,
        min_p=g.min_p,
        repetition_penalty=g.repetition_penalty,
        frequency_penalty=g.frequency_penalty,
        presence_penalty=g.presence_penalty,
        banned=frozenset(g.banned),
        not_before=g.not_before,
        no_repeat_ngram=g.no_repeat_ngram,
        phrases={tuple(p.tokens): -inf if p.bias is None else p.bias for p in g.phrases},
    )


def under_rules(sampling: Sampling, generation: Generation) -> Sampling:
    """A user's choices with what the model's authors forbid or favour in every case: single tokens and runs."""
    own = sampling_of(generation)
    return replace(
        sampling,
        banned=own.banned.union(sampling.banned),
        not_before={**own.not_before, **sampling.not_before},
        no_repeat_ngram=sampling.no_repeat_ngram or own.no_repeat_ngram,
        phrases={**own.phrases, **sampling.phrases},
    )

"""One generation as the user wants it: how tokens are chosen, and how drafts are judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

from paceline.memory.errors import ArgumentError

Accept = Literal["coupled", "rejection", "block", "typical"]
RULES: tuple[Accept, ...] = get_args(Accept)
"""Names of the acceptance rules."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The user's choices; the defaults decode greedily.

    Applied in this order, to every position with its own (hypothetical) history: logit bias, phrases and banned
    tokens, repetition penalty (over prompt and output, as transformers does), frequency and presence penalty
    (over the output, as OpenAI does), runs that would stand there twice (over prompt and output), temperature,
    top-k, top-p, min-p. 0 switches top-k, min-p and no_repeat_ngram off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: frozenset[int] = frozenset()
    not_before: Mapping[int, int] = field(default_factory=dict)
    """Tokens that are banned until the output has so many."""
    no_repeat_ngram: int = 0
    """No run of so many tokens comes twice."""
    phrases: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    """A bias for the last of these tokens where the others stand before it; -inf bans it there."""


class Noise(Protocol):
    """What coupled sampling adds to the logarithms of probabilities. ids: int64[n]."""

    def at(self, position: int, ids: Any) -> Any:
        """float64[n]: of these tokens at a position of the text."""

    def after(self, history: Sequence[int], ids: Any) -> Any:
        """float64[n]: the same for the token that follows a text."""

    def roughly(self, position: int, ids: Any) -> Any:
        """float32[n]: `at` to about three digits."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given: messages, tools, and more variables by name."""

    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] | None = None
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: how tokens are chosen. `accept` is the rule's name, `number` tells requests of one seed apart.

    noise: of coupled sampling where it is not that of seed and number, because tokens have other numbers.
    conversation: which the prompt is the text of, where it is one of a chat and still whole.
    """

    sampling: Sampling
    accept: Accept
    seed: int
    number: int
    prompt_length: int
    noise: Noise | None = None
    conversation: Conversation | None = None

    @property
    def draft_dependent(self) -> bool:
        """Whether the output depends on what is drafted: then neither clocks nor earlier answers may choose it."""
        return self.accept != "coupled" and self.sampling.temperature > 0


@dataclass(frozen=True, slots=True)
class Legal:
    """The values that a choice may have. words: the same for people."""

    good: Callable[[Any], bool]
    words: str


_BIAS = 1e30
_COUNT = Legal(lambda n: isinstance(n, Integral) and int(n) >= 0, "a whole number, 0 (off) or more")
_EITHER_WAY = Legal(lambda p: abs(p) <= 1e3, "between -1000 and 1000 (0 is off)")
LEGAL: Mapping[str, Legal] = {
    "temperature": Legal(lambda t: t == 0 or 1e-3 <= t <= 1e3, "0 (greedy) or between 0.001 and 1000"),
    "top_k": _COUNT,
    "top_p": Legal(lambda p: 0 < p <= 1, "above 0 and at most 1 (off)"),
    "min_p": Legal(lambda p: 0 <= p <= 1, "between 0 (off) and 1"),
    "repetition_penalty": Legal(lambda p: 1e-2 <= p <= 1e2, "between 0.01 and 100 (1 is off)"),
    "frequency_penalty": _EITHER_WAY,
    "presence_penalty": _EITHER_WAY,
    "no_repeat_ngram": _COUNT,
}
"""By field of `Sampling`; NaN is never legal."""


def validate(sampling: Sampling, vocab: int | None = None) -> None:
    """Raise ValueError, in one line with the legal range, for the first choice that makes no sense.

    With `vocab` (the number of token ids) the ids of biased and banned tokens are checked too.
    """
    for name, value, legal in _wrong(sampling, 2**63 if vocab is None else vocab):
        raise ArgumentError(f"{name} is {value}: it must be {legal}")


def _wrong(s: Sampling, vocab: int) -> Iterator[tuple[str, Any, str]]:
    for name, legal in LEGAL.items():
        if not _real(value := getattr(s, name)) or not legal.good(value):
            yield name, _written(value), legal.words
    for name in ("logit_bias", "not_before", "phrases"):
        if not isinstance(value := getattr(s, name), Mapping):
            yield name, _written(value), "a mapping"
    if isinstance(s.banned, str) or not isinstance(s.banned, Collection):
        yield "banned", _written(s.banned), "a set of token ids"
    for token, bias in s.logit_bias.items():
        if not _real(bias) or not abs(bias) <= _BIAS:
            yield (
                f"logit_bias of token {token}",
                _written(bias),
                f"between -{_BIAS:g} and {_BIAS:g}; ban tokens with `banned`",
            )
    for token, least in s.not_before.items():
        if not _real(least) or not _COUNT.good(least):
            yield f"not_before of token {token}", _written(least), _COUNT.words
    for phrase, bias in s.phrases.items():
        if not isinstance(phrase, tuple) or not phrase:
            yield "a phrase", _written(phrase), "one token or more, a tuple"
        if not _real(bias) or not (abs(bias) <= _BIAS or bias == -inf):
            yield (
                f"the bias of the phrase {list(phrase)}",
                _written(bias),
                f"between -{_BIAS:g} and {_BIAS:g}, or -inf",
            )
    most = "" if vocab == 2**63 else f" to {vocab - 1}"
    for name, ids in _ids(s):
        for token in ids:
            if not isinstance(token, Integral) or not 0 <= int(token) < vocab:
                yield f"a token of {name}", _written(token), f"a token id, a whole number from 0{most}"


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _written(value: object) -> str:
    """As a caller wrote it: a number as such, anything else so that its type shows."""
    return f"{value}" if isinstance(value, Real) else f"{value!r:.40}"


def _ids(s: Sampling) -> Iterator[tuple[str, Any]]:
    yield "logit_bias", s.logit_bias
    yield "banned", s.banned
    yield "not_before", s.not_before
    yield "phrases", [token for phrase in s.phrases for token in phrase]

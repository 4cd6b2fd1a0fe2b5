"""Tokens of the tokenizer that a bundle gets, and whether another one can draft for it."""

from __future__ import annotations

from tokenizers import Tokenizer

from paceline.export.errors import ExportError, first_line
from paceline.export.loss import MOST
from paceline.runtime.native_calls import native_call
from paceline.runtime.text.parts import let_through


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text. Raises ExportError where the tokenizer fails on it."""
    try:
        with native_call():
            ids: list[int] = tokenizer.encode(text).ids
            return ids
    except BaseException as error:
        let_through(error)
        raise ExportError(f"the tokenizer fails on the text: {first_line(error)}") from None


def measured_ids(tokenizer: Tokenizer, text: str | None) -> list[int]:
    """Of the text that perplexity is measured on; none without a text, whatever a tokenizer puts before it.

    Raises ExportError for a text too short to measure on.
    """
    if text is None:
        return []
    ids = token_ids(tokenizer, text)[:MOST]
    if len(ids) < 2:
        raise ExportError(
            f"the text to evaluate has {len(ids)} token{'s' * (len(ids) != 1)} in this vocabulary, and perplexity "
            "needs two: give a longer one"
        )
    return ids


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

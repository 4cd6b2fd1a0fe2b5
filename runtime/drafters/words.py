"""The words of `--drafter`, also for those who may not load what they stand for; `kinds.py` says what each is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

PLAIN, AUTO = "none", "auto"
WITH_MODEL = ("chain", "tree", "streams")
WITH_HEAD = ("head",)
WITH_TARGET = ("exit", "skip")
WITHOUT_MODEL = ("lookup", "suffix", "recycle")
WANTED = {
    "decoder": ("draft model", "--drafter", "DIR"),
    "streaming decoder": ("draft model with streams", "--drafter", "DIR"),
    "head": ("draft head", "--head", "DIR"),
    "exit": ("part that leaves the target early", "--exit", "LAYERS"),
    "skip": ("part that leaves out blocks of the target", "--skip", "FILE"),
}
"""By what a drafter runs: that in words, the flag that gives a bundle one, and what the flag takes."""
Translation = Literal["ngram", "direct", "intersection", "text"]
"""How drafts of another vocabulary are read. ngram: merged and split, as OmniDraft does (2507.02659); direct: tokens
that both sides have, up to the first that the target lacks; intersection: nothing else is drafted (TLI, 2502.05202);
text: as a text that the target's tokenizer cuts anew (SLEM, 2502.05202).
"""
TRANSLATIONS: tuple[Translation, ...] = get_args(Translation)
WORDS = (PLAIN, *WITH_MODEL, *WITH_HEAD, *WITH_TARGET, *WITHOUT_MODEL, AUTO)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most likely meant."""
    from difflib import get_close_matches  # only where something went wrong

    return next(iter(get_close_matches(word, list(known), 1)), None)


def keeps_store(drafter: str) -> bool:
    """Whether a drafter learns from a suffix store, alone or fused; `auto` does not."""
    return "suffix" in [word.strip() for word in drafter.split(",")]

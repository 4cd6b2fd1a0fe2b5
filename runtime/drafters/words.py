"""The words of `--drafter`, also for those who may not load what they stand for; `kinds.py` says what each is."""

from __future__ import annotations

PLAIN, AUTO = "none", "auto"
WITH_MODEL = ("chain", "tree")
WITHOUT_MODEL = ("lookup", "suffix", "recycle")
WORDS = (PLAIN, *WITH_MODEL, *WITHOUT_MODEL, AUTO)


def keeps_store(drafter: str) -> bool:
    """Whether a drafter learns from a suffix store, alone or fused; `auto` does not."""
    return "suffix" in [word.strip() for word in drafter.split(",")]

"""What the form in which a bundle stores its weights costs: perplexity on a text, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WINDOW, MOST = 512, 16_384
"""Tokens: of a window, and of a text at most."""
_HIGH = 0.05
"""Share of perplexity from which a remedy is named."""
_SAMPLE = Path(__file__).with_name("sample.txt")


def sample() -> str:
    """Some 2,000 tokens of plain English of many kinds: tales, letters, instructions, talk, numbers."""
    return _SAMPLE.read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Loss:
    """Perplexity of the checkpoint in the reference (torch, numpy) and of the bundle, over so many tokens of a text.

    named: whether it is the user's text, not the sample.
    """

    tokens: int
    named: bool
    before: float
    after: float
    reference: str = "torch"

    @property
    def share(self) -> float:
        """By how much it is larger."""
        return self.after / self.before - 1

    def told(self) -> str:
        """In a line."""
        text = "the text" if self.named else "plain English"
        return (
            f"on {self.tokens:,} tokens of {text}: perplexity {self.before:.4g} in {self.reference}, "
            f"{self.after:.4g} as stored ({self.share:+.1%})"
        )

    def advice(self, quant: str, bits: float | None) -> str | None:
        """What to do where it is high; None where nothing helps or nothing need be done."""
        if self.share <= _HIGH or quant not in ("int4", "int8"):
            return None
        if quant == "int8":
            return f"rounding costs {self.share:.0%} of perplexity, far more than usual: --quant none costs nothing"
        more = f"more bits (--bits {bits + 1:.1f}) cost less, and " if bits is not None and bits < 7 else ""
        return f"rounding costs {self.share:.0%} of perplexity: {more}--quant int8 next to nothing"

"""How well a model says a text, before its weights are stored in another form and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from paceline.export.loss import WINDOW, Loss, sample
from paceline.export.order import Order
from paceline.export.passes import Floats
from paceline.export.tokens import measured_ids
from paceline.runtime.model.perplexity import perplexity


class Measuring:
    """Perplexity on the user's text, or where weights are rounded on the sample; on no text otherwise.

    window: tokens of a pass. Raises ExportError for a text too short to measure on.
    """

    def __init__(self, order: Order, tokenizer: Tokenizer, context: int, rounded: bool) -> None:
        text = sample() if order.eval_text is None and rounded else order.eval_text
        self._ids, self._named = measured_ids(tokenizer, text), order.eval_text is not None
        self.window = min(context, WINDOW)

    def of(self, logits: Callable[[Sequence[int]], Floats], done: Callable[[float], None]) -> float | None:
        """Perplexity by logits float32[T, V] of T tokens, None without a text; `done` is told the share so far."""
        seen = 0

        def counted(tokens: Sequence[int]) -> Floats:
            nonlocal seen
            found = logits(tokens)
            seen += len(tokens)
            done(seen / len(self._ids))
            return found

        return perplexity(counted, self._ids, self.window) if self._ids else None

    def loss(self, before: float | None, after: float | None, reference: str) -> Loss | None:
        """What both come to, None without a text. reference: what computed the first one."""
        if before is None or after is None:
            return None
        return Loss(len(self._ids), self._named, before, after, reference)

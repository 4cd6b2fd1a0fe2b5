"""What a draft head is taught by: how far its law is from its target's, by name.

Every loss takes logits float[N, V] of the head, the target's law p float[N, V], whose rows sum to 1, and the tokens
that stand in the text, int64[N], as rows of the same vocabulary; and gives a number a position, float[N]. q is the
softmax of the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_LEAST = 1e-12
"""Stands for probabilities whose logarithm is taken and that may be 0."""


def ce(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the token that stands in the text: -log q(token)."""
    return F.cross_entropy(logits, tokens, reduction="none")


def kl(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """Forward divergence: sum p log(p / q)."""
    return (p * (p.clamp(min=_LEAST).log() - logits.log_softmax(-1))).sum(-1)


def rkl(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """Reverse divergence: sum q log(q / p)."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - p.clamp(min=_LEAST).log())).sum(-1)


def jsd(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """Jensen-Shannon: the mean of the divergences of p and of q from their middle."""
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    middle = (0.5 * (p + q)).clamp(min=_LEAST).log()
    return 0.5 * (p * (p.clamp(min=_LEAST).log() - middle) + q * (log_q - middle)).sum(-1)


def tvd(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """Total variation: half of sum |p - q|, which is how often a sampled draft is refused."""
    return 0.5 * (p - logits.softmax(-1)).abs().sum(-1)


def tvd_plus(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """TVD++ (2403.00858): the gradient of `tvd` as a policy gradient, with the advantage normalised over the batch.

    A draft that the target likes better than the head does has the reward 1, others 0; the expectation over the
    head's own drafts is taken exactly. The value is that of `tvd` over the deviation of the rewards.
    """
    q = logits.softmax(-1)
    with torch.no_grad():
        reward = (p > q).to(q.dtype)
        mean = (q * reward).sum(-1).mean()
        deviation = (mean * (1 - mean)).sqrt().clamp(min=1e-3)  # the reward is 0 or 1
        advantage = (reward - mean) / deviation
        value = 0.5 * (p - q).abs().sum(-1) / deviation
    surrogate = -(q * advantage).sum(-1)
    return surrogate - surrogate.detach() + value


def lk(logits: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """-log of the chance that a sampled draft is accepted, sum min(p, q) (LK losses, 2602.23881)."""
    return -torch.minimum(p, logits.softmax(-1)).sum(-1).clamp(min=_LEAST).log()


LOSSES: dict[str, Loss] = {
    "ce": ce,
    "kl": kl,
    "rkl": rkl,
    "jsd": jsd,
    "tvd": tvd,
    "tvd++": tvd_plus,
    "lk": lk,
}


def level_weights(depth: int, decay: float) -> list[float]:
    """decay ** (level - 1), scaled so that they sum to 1."""
    raw = [decay**level for level in range(depth)]
    return [weight / sum(raw) for weight in raw]

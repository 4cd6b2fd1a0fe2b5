"""Losses of draft heads against values by hand and gradients by differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from paceline.export.training.heads.losses import LOSSES, level_weights  # noqa: E402

pytestmark = pytest.mark.export

Q = [0.5, 0.25, 0.25]
P = [0.7, 0.1, 0.2]
MIDDLE = [(a + b) / 2 for a, b in zip(P, Q, strict=True)]


def _divergence(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


# p > q holds for the first token alone: its chance under q is 0.5, so rewards have the deviation 0.5.
BY_HAND = {
    "ce": -math.log(0.25),
    "kl": _divergence(P, Q),
    "rkl": _divergence(Q, P),
    "jsd": (_divergence(P, MIDDLE) + _divergence(Q, MIDDLE)) / 2,
    "tvd": 0.2,
    "tvd++": 0.2 / 0.5,
    "lk": -math.log(0.5 + 0.1 + 0.2),
}


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor([Q]).double().log() + 3.0, torch.tensor([P]).double(), torch.tensor([2])


@pytest.mark.parametrize("name", LOSSES)
def test_the_value_is_that_by_hand(name: str) -> None:
    assert LOSSES[name](*given()).tolist() == pytest.approx([BY_HAND[name]], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "tvd++"])
def test_the_gradient_is_that_by_differences(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    p = torch.randn(3, 6, dtype=torch.float64).mul(2).softmax(-1)
    tokens = torch.tensor([1, 5, 0])
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, p, tokens), (logits,))


def test_the_policy_gradient_points_where_that_of_the_variation_does() -> None:
    """A reward's mean does not matter to an exact expectation: what is left is the deviation."""
    torch.manual_seed(1)
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    p, tokens = torch.randn(4, 7, dtype=torch.float64).softmax(-1), torch.zeros(4, dtype=torch.int64)
    (plain,) = torch.autograd.grad(LOSSES["tvd"](logits, p, tokens).sum(), logits)
    (normed,) = torch.autograd.grad(LOSSES["tvd++"](logits, p, tokens).sum(), logits)
    q = logits.softmax(-1)
    mean = (q * (p > q)).sum(-1).mean()
    torch.testing.assert_close(normed, plain / (mean * (1 - mean)).sqrt())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ce"])
def test_nothing_is_left_to_learn_where_the_laws_are_the_same(name: str) -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](logits, logits.detach().softmax(-1), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    if name not in ("tvd", "tvd++", "lk"):  # these have a kink there
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_of_nothing_give_numbers(name: str) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = LOSSES[name](logits, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_levels_count_less_and_less() -> None:
    assert level_weights(3, 0.5) == pytest.approx([4 / 7, 2 / 7, 1 / 7])

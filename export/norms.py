"""Root-mean-square norms become one node: found by trying what a module computes, not by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_SHIFTED = "one_plus_weight"


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Within this block every module of `model` that computes an RMS norm is traced as RMSNormalization.

    The norm is x / sqrt(mean(x^2) + epsilon) times the weight, or times 1 + weight (Gemma).
    """
    changed: list[nn.Module] = []
    try:
        for module in list(model.modules()):
            found = _rms_norm(module)
            if found is None:
                continue
            epsilon, shifted = found
            changed.append(module)
            if shifted:
                module.register_buffer(_SHIFTED, _weight(module) + 1, persistent=False)
            vars(module)["forward"] = _one_node(module, _SHIFTED if shifted else "weight", epsilon)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)
            module._buffers.pop(_SHIFTED, None)
            module._non_persistent_buffers_set.discard(_SHIFTED)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _rms_norm(module: nn.Module) -> tuple[float, bool] | None:
    """Return (epsilon, whether the weight is shifted by one) if `module` computes an RMS norm."""
    if isinstance(module, nn.LayerNorm) or "forward" in vars(module):
        return None
    if [name for name, _ in module.named_parameters()] != ["weight"] or any(True for _ in module.children()):
        return None
    weight = _weight(module)
    if weight.ndim != 1:
        return None
    generator = torch.Generator().manual_seed(0)
    # Rows of very different size, so that a wrong epsilon shows.
    x = torch.randn(4, weight.shape[0], generator=generator) * torch.tensor([[1.0], [30.0], [1e-2], [1e-4]])
    try:
        with torch.no_grad():
            y = module(x)
    except (TypeError, ValueError, RuntimeError):
        return None
    for epsilon in [v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1e-2]:
        unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        for shifted in (False, True):
            wanted = unit * (weight + 1 if shifted else weight)
            if y.shape == wanted.shape and torch.allclose(y, wanted, rtol=1e-5, atol=1e-6):
                return epsilon, shifted
    return None


def _one_node(module: nn.Module, scale: str, epsilon: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "RMSNormalization",
            (x, getattr(module, scale)),
            {"axis": -1, "epsilon": epsilon},
            dtype=x.dtype,
            shape=x.shape,
        )

    return forward

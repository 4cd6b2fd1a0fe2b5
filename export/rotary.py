"""Rotary positions: one node rotates a tensor, and frequencies that depend on a length become inputs.

How a model lays out its tables and which numbers it pairs is found by trying its own function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from paceline.export.errors import ExportError

_FUNCTION = "apply_rotary_pos_emb"
_LENGTH_DEPENDENT = ("dynamic", "longrope")

Rotate = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Style:
    """How a model rotates: which table columns are the half it needs, and which numbers form a pair."""

    doubled: bool
    """Table columns are f0 f0 f1 f1 ... instead of f0 f1 ... f0 f1 ..."""
    interleaved: bool
    """Pairs are neighbours instead of one number from each half."""


@dataclass(slots=True)
class Rotation:
    """A model file's own rotation function, and the calls that were seen of it."""

    file: ModuleType
    function: Rotate
    calls: list[tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]] = field(default_factory=list)
    plain: bool = True
    """Every call had the usual arguments."""

    def style(self) -> Style | None:
        """The one style that explains every call that was seen, if there is one."""
        if not self.calls or not self.plain:
            return None
        styles = (Style(doubled, interleaved) for doubled in (False, True) for interleaved in (False, True))
        return next((style for style in styles if all(_explains(style, *call) for call in self.calls)), None)


@contextmanager
def watched_rotations(model: nn.Module) -> Iterator[list[Rotation]]:
    """Within this block, write down what the model's own rotation functions are given and return."""
    files = {type(module).__module__ for module in model.modules()}
    found = [sys.modules[name] for name in sorted(files) if hasattr(sys.modules[name], _FUNCTION)]
    rotations = [Rotation(file, getattr(file, _FUNCTION)) for file in found]
    try:
        for rotation in rotations:
            setattr(rotation.file, _FUNCTION, _watch(rotation))
        yield rotations
    finally:
        for rotation in rotations:
            setattr(rotation.file, _FUNCTION, rotation.function)


def _watch(rotation: Rotation) -> Rotate:
    def watched(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        result = rotation.function(*arguments, **keywords)
        if _usual(arguments, keywords) and isinstance(result, tuple) and len(result) == 2:
            rotation.calls.append((arguments[:4], result))
        else:
            rotation.plain = False
        return result

    return watched


def _usual(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """(q, k, cos, sin), heads before rows."""
    tensors = len(arguments) == 4 and all(isinstance(argument, Tensor) for argument in arguments)
    return tensors and keywords.get("unsqueeze_dim", 1) == 1 and set(keywords) <= {"unsqueeze_dim"}


def _half(table: Tensor, style: Style) -> Tensor:
    return table[..., ::2] if style.doubled else table[..., : table.shape[-1] // 2]


def _explains(style: Style, arguments: tuple[Tensor, ...], result: tuple[Tensor, Tensor]) -> bool:
    q, k, cos, sin = arguments
    if cos.ndim != 3:
        return False
    c, s = _half(cos, style)[:, None], _half(sin, style)[:, None]
    pairs = zip((q, k), result, strict=True)
    return all(torch.allclose(_rotated(x, c, s, style), y, rtol=1e-5, atol=1e-6) for x, y in pairs)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, style: Style) -> Tensor:
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if style.interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, rest), dim=-1)


@contextmanager
def fused_rotations(rotations: list[Rotation]) -> Iterator[None]:
    """Within this block, rotations of a known style are traced as one RotaryEmbedding node a tensor."""
    try:
        for rotation in rotations:
            style = rotation.style()
            if style is not None:
                setattr(rotation.file, _FUNCTION, _fuse(style))
        yield
    finally:
        for rotation in rotations:
            setattr(rotation.file, _FUNCTION, rotation.function)


def _fuse(style: Style) -> Rotate:
    # One table serves every layer, so its half is cut once; the table is kept so that its id stays its own.
    halves: dict[int, tuple[Tensor, Tensor]] = {}

    def half(table: Tensor) -> Tensor:
        if id(table) not in halves:
            halves[id(table)] = table, _half(table, style)
        return halves[id(table)][1]

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor) -> Tensor:
            width = cos.shape[-1]
            attributes: dict[str, Any] = {
                "interleaved": int(style.interleaved),
                "rotary_embedding_dim": 0 if width == x.shape[-1] else width,
            }
            return torch.onnx.ops.symbolic(
                "RotaryEmbedding", (x, half(cos), half(sin)), attributes, dtype=x.dtype, shape=x.shape
            )

        return turn(q), turn(k)

    return rotate


def length_dependent(model: nn.Module) -> list[nn.Module]:
    """Modules whose frequencies change with the length of the text. Raises ExportError."""
    found = []
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            if any(kind in _LENGTH_DEPENDENT for kind in kinds.values()):
                raise ExportError(
                    f"{name} ({type(module).__name__}) scales rotary positions by length for some layers only"
                )
        elif kinds in _LENGTH_DEPENDENT:
            found.append(module)
    return found


def own_frequencies(modules: list[nn.Module], length: int) -> tuple[Tensor, Tensor]:
    """What transformers itself takes for a text of `length` tokens: `inv_freq[dim / 2]` and the scale `[1]`."""
    module: Any = modules[0]
    with torch.no_grad():
        for last in (0, length - 1):  # a short text undoes what a long one before it left
            module(torch.zeros(1), torch.tensor([[last]]))
        found = module.inv_freq.clone(), torch.tensor([float(module.attention_scaling)])
        module(torch.zeros(1), torch.tensor([[0]]))
    return found


@contextmanager
def fixed_frequencies(modules: list[nn.Module], inv_freq: Tensor, scale: Tensor) -> Iterator[None]:
    """Within this block these modules use `inv_freq[dim / 2]` and multiply their tables by `scale[1]`."""
    before = [(module._buffers["inv_freq"], module.rope_type, module.attention_scaling) for module in modules]
    try:
        for module in modules:
            module._buffers["inv_freq"] = inv_freq
            vars(module).update(rope_type="default", attention_scaling=scale)
        yield
    finally:
        for module, (buffer, kind, scaling) in zip(modules, before, strict=True):
            module._buffers["inv_freq"] = buffer
            vars(module).update(rope_type=kind, attention_scaling=scaling)

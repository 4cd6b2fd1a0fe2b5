"""Our side of transformers' attention interface: what each layer asks for, and the node it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from paceline.export.errors import ExportError

IMPLEMENTATION = "paceline"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the attention function: its tensors `[1, heads, T, D]` and what the model asked for."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float


Handler = Callable[[Call], Tensor]
"""Takes a call, returns `[1, heads, T, D]`."""

_IGNORED = frozenset(
    ["position_ids", "cache_position", "use_cache", "return_dict", "sliding_window", "position_embeddings"]
)
"""Keywords that change nothing here: masks carry the window, positions and caches are ours."""

_handler: Handler | None = None
_masker: Callable[[Callable[..., Any]], Tensor | None] | None = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    if _handler is None:
        raise ExportError("a model loaded for export cannot run by itself; use the reference")
    scale = keywords.pop("scaling", None)
    softcap = keywords.pop("softcap", None)
    dropout = keywords.pop("dropout", 0.0)
    causal = keywords.pop("is_causal", None)
    if dropout:
        raise ExportError(f"{type(module).__name__} asks for dropout {dropout} while it is evaluated")
    if causal is False or getattr(module, "is_causal", True) is False:
        raise ExportError(f"{type(module).__name__} is not causal: only decoders can be exported")
    for name, value_ in keywords.items():
        if name not in _IGNORED and value_ is not None and value_ is not False:
            raise ExportError(f"{type(module).__name__} asks attention for {name!r}, which is not supported")
    call = Call(
        module,
        query,
        key,
        value,
        attention_mask,
        float(scale) if scale is not None else query.shape[-1] ** -0.5,
        float(softcap) if softcap is not None else 0.0,
    )
    return _handler(call).transpose(1, 2), None


def _mask(*arguments: Any, mask_function: Callable[..., Any] | None = None, **keywords: Any) -> Tensor | None:
    if _masker is None:
        return None
    if mask_function is None or arguments:
        raise ExportError("this transformers release calls mask functions in a way that is not understood")
    return _masker(mask_function)


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


@contextmanager
def attention_by(
    handler: Handler, masker: Callable[[Callable[..., Any]], Tensor | None] | None = None
) -> Iterator[None]:
    """Within this block, every attention layer of a model loaded for export calls `handler`."""
    global _handler, _masker
    before = _handler, _masker
    _handler, _masker = handler, masker
    try:
        yield
    finally:
        _handler, _masker = before


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, as a rehearsal saw it."""

    name: str
    """Where the decoder layer sits in the model, `model.layers.3`."""
    attention: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int
    """0 = none."""


def rehearse(model: nn.Module, context: int) -> list[Layer]:
    """Run two tokens through the model and write down what every layer asks of its attention.

    The window is read out of the mask that reaches the layer, by asking the mask itself, because the keyword
    of that name is not what the eager model follows. Raises ExportError.
    """
    kind = type(model).__name__
    marks: list[tuple[Tensor, int]] = []
    calls: list[Call] = []

    def mask(function: Callable[..., Any]) -> Tensor:
        mark = torch.zeros(1, 1, 1, 1)
        window = _window(function, context)
        if window is None:
            raise ExportError(f"{kind} masks attention by something other than order and a sliding window")
        marks.append((mark, window))
        return mark

    def attend(call: Call) -> Tensor:
        calls.append(call)
        return call.query.new_zeros((*call.query.shape[:-1], call.value.shape[-1]))

    ids = torch.tensor([[1, 2]])
    with torch.no_grad(), attention_by(attend, mask):
        model(input_ids=ids, position_ids=ids, use_cache=False)
    names = {id(module): name for name, module in model.named_modules()}
    layers = [_layer(call, names, marks) for call in calls]
    _check_order(model, layers)
    return layers


def _layer(call: Call, names: dict[int, str], marks: list[tuple[Tensor, int]]) -> Layer:
    kind = type(call.module).__name__
    windows = [window for mark, window in marks if mark is call.mask]
    if not windows:
        raise ExportError(
            f"{kind} gets a mask that the model changed on its way (a position bias?): not supported"
        )
    name = names[id(call.module)]
    if call.key.shape != call.value.shape or call.query.shape[-1] != call.key.shape[-1]:
        raise ExportError(f"{kind} ({name}) has values of another size than its keys: not supported")
    return Layer(
        name=_layer_name(name),
        attention=call.module,
        heads=call.query.shape[1],
        kv_heads=call.key.shape[1],
        head_dim=call.query.shape[-1],
        scale=call.scale,
        softcap=call.softcap,
        window=windows[0],
    )


def _layer_name(name: str) -> str:
    """Cut a module's name after its layer number: model.layers.3.self_attn -> model.layers.3."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])


def _check_order(model: nn.Module, layers: list[Layer]) -> None:
    if not layers:
        raise ExportError(f"{type(model).__name__} never calls the attention interface: not supported")
    first = layers[0].name.rpartition(".")
    stack = model.get_submodule(first[0]) if first[0] else model
    children = [f"{first[0]}.{name}" for name, _ in stack.named_children()]
    seen = [layer.name for layer in layers]
    for name in children:
        if seen.count(name) != 1:
            kind = type(model.get_submodule(name)).__name__
            raise ExportError(
                f"{name} ({kind}) calls attention {seen.count(name)} times instead of once: "
                "hybrid, state-space and differential models are not supported"
            )
    if seen != children:
        raise ExportError(f"{type(model).__name__} runs its layers in an order that is not understood")


def _window(mask: Callable[..., Any], context: int) -> int | None:
    """Ask a mask how many positions a row sees, itself included: 0 = all before it, None = other."""
    zero = torch.tensor(0)
    window = 0
    for position in sorted({context - 1, context // 2, context // 3}, reverse=True):
        keys = torch.arange(context + 1)
        seen = torch.as_tensor(mask(zero, zero, torch.tensor(position), keys)).expand(context + 1)
        count = int(seen.sum())
        if position == context - 1 and count < context:
            window = count
        expected = min(window, position + 1) if window else position + 1
        first = position + 1 - expected
        if count != expected or not bool(seen[first : position + 1].all()):
            return None
    return window

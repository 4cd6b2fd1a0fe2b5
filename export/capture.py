"""From a torch decoder to a graph that follows the graph contract, without touching the model's code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from paceline.export.attention import Call, Layer, attention_by, rehearse
from paceline.export.errors import ExportError
from paceline.export.functions import append_functions
from paceline.export.linears import expand_linears, plain_linears
from paceline.export.norms import fused_norms
from paceline.export.order import check_taps
from paceline.export.rotary import fixed_frequencies, fused_rotations, length_dependent, watched_rotations
from paceline.export.source import Loaded
from paceline.runtime.ops import tree_attention as contract

OPSET = 23
_EXAMPLE = {"T": 5, "W": 9, "R": 3, "S": 32, "past": 6}
"""Sizes of the example inputs: all different and above 1, so that no two are taken for one."""


class _Pass(nn.Module):
    """The model with the contract's inputs and outputs."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], taps: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._stretched = length_dependent(model)
        self._layers = layers
        self._taps = taps

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        tree_mask: Tensor,
        past_len: Tensor,
        rows: Tensor,
        cache_k: list[Tensor],
        cache_v: list[Tensor],
        inv_freq: Tensor | None = None,
        rope_scale: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        index = {id(layer.attention): i for i, layer in enumerate(self._layers)}
        new_k: list[Tensor] = []
        new_v: list[Tensor] = []
        taps: dict[str, Tensor] = {}

        def attend(call: Call) -> Tensor:
            i = index[id(call.module)]
            new_k.append(call.key)
            new_v.append(call.value)
            inputs = (
                call.query,
                call.key,
                call.value,
                cache_k[i],
                cache_v[i],
                past_len,
                tree_mask,
                positions,
            )
            return _node(
                f"{contract.DOMAIN}::{contract.NAME}",
                inputs,
                call.query,
                {"scale": call.scale, "window": self._layers[i].window, "softcap": call.softcap},
                version=contract.VERSION,
            )

        with ExitStack() as stack:
            stack.enter_context(attention_by(attend))
            stack.enter_context(self._tapping(taps))
            stack.enter_context(self._head_on(rows))
            if inv_freq is not None and rope_scale is not None:
                stack.enter_context(fixed_frequencies(self._stretched, inv_freq, rope_scale))
            out = self.model(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
            )
        return (
            out.logits,
            *(taps[name] for name in self._taps),
            *(key.squeeze(0) for key in new_k),
            *(value.squeeze(0) for value in new_v),
        )

    @contextmanager
    def _tapping(self, found: dict[str, Tensor]) -> Iterator[None]:
        def tap(name: str, module: nn.Module) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                value = output if isinstance(output, Tensor) else output[0]
                found[name] = value.squeeze(0)

            return module.register_forward_hook(hook)

        handles = [tap(name, _tap_module(self.model, self._layers, name)) for name in self._taps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _head_on(self, rows: Tensor) -> Iterator[None]:
        """Give the head only the rows that want logits, so that `[R, V]` comes out without a copy."""
        head: nn.Module = cast(Any, self.model).get_output_embeddings()

        def choose(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].squeeze(0).index_select(0, rows), *inputs[1:])

        handle = head.register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()


def _tap_module(model: nn.Module, layers: Sequence[Layer], name: str) -> nn.Module:
    if name == "hidden":
        return cast(nn.Module, model.base_model)
    return model.get_submodule(layers[int(name.partition(".")[2])].name)


def _node(
    op: str, inputs: Sequence[Tensor], like: Tensor, attributes: dict[str, Any], version: int
) -> Tensor:
    return torch.onnx.ops.symbolic(
        op, inputs, attributes, dtype=like.dtype, shape=like.shape, version=version
    )


def capture(loaded: Loaded, taps: Sequence[str] = ()) -> ir.Model:
    """Return the model's graph, which follows the graph contract; weights stay backed by the torch tensors.

    `taps` name extra outputs: "hidden" (after the final norm) and "hidden.L" (after block L), `[T, H]`.
    A model whose rotary frequencies depend on the length has two more inputs, `inv_freq[dim / 2]` and
    `rope_scale[1]`. Raises ExportError.
    """
    model = loaded.model
    check_taps(taps, len(loaded.layers))
    with watched_rotations(model) as rotations:
        rehearse(model, 1)
    stretched = length_dependent(model)
    with torch.no_grad(), ExitStack() as stack:
        for change in (plain_linears(model), fused_norms(model), fused_rotations(rotations), quiet()):
            stack.enter_context(change)
        try:
            program = torch.onnx.export(
                _Pass(model, loaded.layers, taps).eval(),
                _example(loaded.layers, stretched),
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=OPSET,
                input_names=_input_names(len(loaded.layers), bool(stretched)),
                output_names=_output_names(len(loaded.layers), taps),
                dynamic_shapes=_dynamic(len(loaded.layers), bool(stretched)),
            )
        except OnnxExporterError as error:
            raise ExportError(f"{type(model).__name__} cannot be traced: {_cause(error)}") from error
    assert program is not None
    graph = program.model
    _name_dimensions(graph)
    expand_linears(graph)
    append_functions(graph)
    return graph


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's own warnings about its own code from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "torch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _input_names(layers: int, stretched: bool) -> list[str]:
    caches = [f"{part}.{i}" for part in ("cache_k", "cache_v") for i in range(layers)]
    rope = ["inv_freq", "rope_scale"] if stretched else []
    return ["token_ids", "positions", "tree_mask", "past_len", "rows", *caches, *rope]


def _output_names(layers: int, taps: Iterable[str]) -> list[str]:
    return ["logits", *taps, *(f"{part}.{i}" for part in ("new_k", "new_v") for i in range(layers))]


def _example(layers: Sequence[Layer], stretched: Sequence[nn.Module]) -> tuple[Any, ...]:
    t, w, r, s, past = (_EXAMPLE[name] for name in ("T", "W", "R", "S", "past"))

    def caches() -> list[Tensor]:
        return [torch.zeros(layer.kv_heads, s, layer.head_dim) for layer in layers]

    return (
        torch.arange(t),
        torch.arange(t) + past,
        torch.ones(t, w, dtype=torch.bool),
        torch.tensor([past]),
        torch.arange(r),
        caches(),
        caches(),
        *((torch.ones_like(cast(Tensor, stretched[0].inv_freq)), torch.ones(1)) if stretched else ()),
    )


def _dynamic(layers: int, stretched: bool) -> tuple[Any, ...]:
    free = torch.export.Dim.DYNAMIC
    caches = [{1: free} for _ in range(layers)]
    return (
        {0: free},
        {0: free},
        {0: free, 1: free},
        {},
        {0: free},
        caches,
        list(caches),
        *([{}, {}] if stretched else []),
    )


def _name_dimensions(model: ir.Model) -> None:
    """Call the free dimensions T, W, R and S, as the contract does."""
    meaning = {"token_ids": "T", "positions": "T", "tree_mask": "TW", "rows": "R"}
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.name is not None
        for i, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim):
                names[str(dim.value)] = meaning[value.name][i] if value.name in meaning else "S"
    nodes = (output for node in model.graph for output in node.outputs)
    for value in [*model.graph.inputs, *nodes]:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else names.get(str(d.value), d.value) for d in value.shape]
            value.shape = ir.Shape(dims)

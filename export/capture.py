"""From a torch decoder to a graph that follows the graph contract, without touching the model's code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paceline.export.attention import Call, ExportError, Layer, attention_by, rehearse
from paceline.export.functions import append_functions
from paceline.export.norms import fused_norms
from paceline.export.source import Loaded
from paceline.runtime.ops import tree_attention as contract

OPSET = 23
_LINEAR = "paceline.capture::Linear"
_EXAMPLE = {"T": 5, "W": 9, "R": 3, "S": 32, "past": 6}
"""Sizes of the example inputs: all different and above 1, so that no two are taken for one."""


class _Pass(nn.Module):
    """The model with the contract's inputs and outputs."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], taps: Sequence[str]) -> None:
        super().__init__()
        self.model = model
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
    ) -> tuple[Tensor, ...]:
        index = {id(layer.attention): i for i, layer in enumerate(self._layers)}
        new_k: list[Tensor] = []
        new_v: list[Tensor] = []
        taps: dict[str, Tensor] = {}

        def attend(call: Call) -> Tensor:
            i = index[id(call.module)]
            new_k.append(call.key)
            new_v.append(call.value)
            inputs = (call.query, call.key, call.value, cache_k[i], cache_v[i], past_len, tree_mask, positions)
            return _node(
                f"{contract.DOMAIN}::{contract.NAME}",
                inputs,
                call.query,
                {"scale": call.scale, "window": self._layers[i].window, "softcap": call.softcap},
                version=contract.VERSION,
            )

        with attention_by(attend), self._tapping(taps), self._flat_head():
            out = self.model(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=rows,
            )
        logits = out.logits if out.logits.ndim == 2 else out.logits.squeeze(0)
        return (
            logits,
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
    def _flat_head(self) -> Iterator[None]:
        """Give the head `[R, H]`, so that the logits come out as the contract has them, without a copy."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ExportError(f"{type(self.model).__name__} has no output embeddings")

        def flatten(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].squeeze(0), *inputs[1:])

        handle = head.register_forward_pre_hook(flatten)
        try:
            yield
        finally:
            handle.remove()


def _tap_module(model: nn.Module, layers: Sequence[Layer], name: str) -> nn.Module:
    if name == "hidden":
        return model.base_model
    kind, _, number = name.partition(".")
    if kind != "hidden" or not number.isdigit() or int(number) >= len(layers):
        raise ExportError(f"no tap {name!r}: taps are 'hidden' and 'hidden.0' to 'hidden.{len(layers) - 1}'")
    return model.get_submodule(layers[int(number)].name)


def _node(op: str, inputs: Sequence[Tensor], like: Tensor, attributes: dict[str, Any], version: int) -> Tensor:
    return torch.onnx.ops.symbolic(
        op, inputs, attributes, dtype=like.dtype, shape=like.shape, version=version
    )


@contextmanager
def _plain_linears(model: nn.Module) -> Iterator[None]:
    """Keep every projection one node that names its weight, instead of a transposed copy of the weight."""
    changed = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and "forward" not in vars(m)]
    try:
        for module in changed:
            module.forward = _linear_forward(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _linear_forward(module: nn.Module) -> Any:
    transposed = isinstance(module, nn.Linear)
    width = module.weight.shape[0 if transposed else 1]

    def forward(x: Tensor) -> Tensor:
        y = torch.onnx.ops.symbolic(
            _LINEAR,
            (x, module.weight),
            {"transposed": int(transposed)},
            dtype=x.dtype,
            shape=(*x.shape[:-1], width),
            version=1,
        )
        return y if module.bias is None else y + module.bias

    return forward


def capture(loaded: Loaded, taps: Sequence[str] = ()) -> ir.Model:
    """Return the model's graph; weights stay backed by the torch tensors. Raises ExportError."""
    model = loaded.model
    layers = rehearse(model, loaded.config.max_position_embeddings)
    names = _input_names(len(layers)), _output_names(len(layers), taps)
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(_plain_linears(model))
        stack.enter_context(fused_norms(model))
        program = torch.onnx.export(
            _Pass(model, layers, taps).eval(),
            _example(layers),
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=_dynamic(len(layers)),
        )
    if program is None:
        raise ExportError("torch gave no graph")
    graph = program.model
    _name_dimensions(graph)
    _expand_linears(graph)
    append_functions(graph)
    return graph


def _input_names(layers: int) -> list[str]:
    caches = [f"{part}.{i}" for part in ("cache_k", "cache_v") for i in range(layers)]
    return ["token_ids", "positions", "tree_mask", "past_len", "rows", *caches]


def _output_names(layers: int, taps: Iterable[str]) -> list[str]:
    return ["logits", *taps, *(f"{part}.{i}" for part in ("new_k", "new_v") for i in range(layers))]


def _example(layers: Sequence[Layer]) -> tuple[Any, ...]:
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
    )


def _dynamic(layers: int) -> tuple[Any, ...]:
    free = torch.export.Dim.DYNAMIC
    caches = [{1: free} for _ in range(layers)]
    return ({0: free}, {0: free}, {0: free, 1: free}, {}, {0: free}, caches, list(caches))


def _name_dimensions(model: ir.Model) -> None:
    """Call the free dimensions T, W, R and S, as the contract does."""
    meaning = {"token_ids": "T", "positions": "T", "tree_mask": "TW", "rows": "R"}
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.name is not None
        for i, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim):
                names[str(dim.value)] = meaning[value.name][i] if value.name in meaning else "S"
    nodes = (output for node in model.graph for output in node.outputs)
    for value in [*model.graph.inputs, *nodes]:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else names.get(str(d.value), d.value) for d in value.shape]
            value.shape = ir.Shape(dims)


def _expand_linears(model: ir.Model) -> None:
    """Turn the stand-in of each projection into MatMul with a weight `[in, out]`, a view of the torch tensor."""
    views: dict[str, ir.Value] = {}
    domain, _, kind = _LINEAR.partition("::")
    for node in list(model.graph):
        if node.domain != domain or node.op_type != kind:
            continue
        x, weight = node.inputs
        assert weight is not None
        if node.attributes["transposed"].as_int():
            weight = _transposed(model, weight, views)
        product = ir.Node("", "MatMul", [x, weight], name=node.name)
        product.outputs[0].shape, product.outputs[0].dtype = node.outputs[0].shape, node.outputs[0].dtype
        product.outputs[0].name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [product], node.outputs, product.outputs
        )
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    model.opset_imports.pop(domain, None)


def _transposed(model: ir.Model, weight: ir.Value, views: dict[str, ir.Value]) -> ir.Value:
    assert weight.name is not None
    if weight.name not in views:
        tensor = weight.const_value
        raw = getattr(tensor, "raw", None)
        if not isinstance(raw, Tensor):
            raise ExportError(f"the weight {weight.name} is not a plain parameter")
        name = f"{weight.name}.T"
        view = TorchTensor(raw.detach().t(), name=name)
        value = ir.Value(name=name, shape=view.shape, type=ir.TensorType(view.dtype), const_value=view)
        model.graph.register_initializer(value)
        views[weight.name] = value
    return views[weight.name]

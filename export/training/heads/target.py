"""What a head takes over from its target: its LM head and its embedding, as a bundle runs them, and a few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from paceline.export.errors import ExportError
from paceline.export.heads.config import TargetId, target_id
from paceline.export.heads.table import target_table
from paceline.export.training.start import tensor_values
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.ops.packed_matmul import ATTRIBUTES, PRODUCTS, dequantised

_THETA = 10000.0
_EPSILON = 1e-5
_NEAR = 6
"""Nodes between the final norm and the logits, at most."""


@dataclass(frozen=True, slots=True)
class Target:
    """head, embedding float32[V, H], norm float32[H]: the weight of the final norm, 1 where it was not found."""

    name: TargetId
    head: Tensor
    embedding: Tensor
    norm: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    rope_theta: float
    epsilon: float

    @property
    def vocab(self) -> int:
        """Rows of both tables."""
        return len(self.head)

    @property
    def hidden(self) -> int:
        """Their columns."""
        return self.head.shape[1]


def read_target(bundle: Bundle) -> Target:
    """The tables of a bundle's target, from the very weights that it runs. Raises ValueError with one line."""
    part = bundle.manifest.target
    graph = onnx.load_model_from_string(bundle.read_graph(part.graph)).graph
    found = _Graph(graph, bundle.path(part.data))
    where = f"{bundle.folder}: {part.graph}"
    product = found.made_by.get("logits")
    if product is None or product.op_type not in PRODUCTS or len(product.input) > _bias(product):
        raise ValueError(
            f"{where}: its logits are not a packed product of the last hidden states, and no head or exit can be "
            "trained for it: export the model with --profile cpu or cpu+static, or leave it where that is so already, "
            "for a model that caps or scales its logits is not supported"
        )
    head = found.matrix(product)
    epsilon = found.first("epsilon")
    glu = [node for node in graph.node if node.op_type.endswith("Glu")]
    inner = _attributes(glu[0])["N"] // 2 if glu else 4 * part.hidden
    return Target(
        name=target_id(bundle.manifest),
        head=head,
        embedding=_embedding(bundle, head),
        norm=found.final_norm(part.hidden),
        heads=int(found.first("q_heads") or part.hidden // part.head_dim),
        kv_heads=part.kv_heads,
        head_dim=part.head_dim,
        inner=int(inner),
        rope_theta=found.theta(part.head_dim),
        epsilon=float(f"{epsilon:.7g}") if epsilon else _EPSILON,
    )


def _embedding(bundle: Bundle, head: Tensor) -> Tensor:
    """Rows of the tokens; the LM head itself where they are the same, or where there are none that can be read."""
    try:
        table = torch.from_numpy(target_table(bundle.folder, bundle.manifest.target))
    except ExportError:
        return head
    return head if torch.equal(table, head) else table


class _Graph:
    """Looks for things in a graph."""

    def __init__(self, graph: onnx.GraphProto, data: Path) -> None:
        self._nodes, self._data = list(graph.node), data
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.made_by = {name: node for node in graph.node for name in node.output}

    def values(self, name: str) -> Any:
        """An initializer."""
        return tensor_values(self._tensors[name], self._data)

    def matrix(self, node: onnx.NodeProto) -> Tensor:
        """The packed matrix of a product, float32[N, K]: a row for every token."""
        sizes = {name: _attributes(node)[name] for name in ATTRIBUTES}
        first = PRODUCTS[node.op_type].index("weights")
        weights, *more = (self.values(name) for name in node.input[first : first + 2] if name)
        scales = more[0] if more and sizes["block_size"] else None
        return torch.from_numpy(np.ascontiguousarray(dequantised(weights, scales, **sizes).T))

    def final_norm(self, hidden: int) -> Tensor:
        """The weight of the norm before the LM head: an input of the product, or of what makes its x."""
        node: onnx.NodeProto | None = self.made_by["logits"]
        for _ in range(_NEAR):
            if node is None:
                break
            for name in node.input:
                if name in self._tensors and list(self._tensors[name].dims) == [hidden]:
                    return torch.from_numpy(np.array(self.values(name), np.float32))
            node = self.made_by.get(node.input[0])
        return torch.ones(hidden)

    def first(self, attribute: str) -> Any:
        """The first attribute of this name, None where there is none."""
        return next((found[attribute] for n in self._nodes if attribute in (found := _attributes(n))), None)

    def theta(self, head_dim: int) -> float:
        """The base of the rotary frequencies, of the second of them."""
        for tensor in self._tensors.values():
            if tensor.name.endswith("inv_freq") and len(tensor.dims) == 1 and tensor.dims[0] > 1:
                second = float(self.values(tensor.name)[1])
                return float(f"{second ** -float(tensor.dims[0]):.5g}") if 0 < second < 1 else _THETA
        return _THETA


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _bias(node: onnx.NodeProto) -> int:
    """How many inputs a product has without a bias."""
    return PRODUCTS[node.op_type].index("bias")

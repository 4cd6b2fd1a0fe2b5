"""A graph of a few nodes whose results are known: what a device is tried with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.runtime.model.small_graph import node, real, small_graph, tensor, value, whole

Floats = npt.NDArray[np.float32]
_ROWS, _COLUMNS, _OUTPUTS = 4, 64, 96
_EPSILON = 1e-5
TOLERANCE = 1e-2
"""Results are chances, 0 to 1; devices that compute in 16 bits came within 2e-3."""


class Trial:
    """A norm, a product and a softmax, as every decoder has them: the graph, its input and what has to come out."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x: Floats = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
        scale = rng.uniform(0.5, 1.5, _COLUMNS).astype(np.float32)
        weights = (0.3 * rng.standard_normal((_COLUMNS, _OUTPUTS))).astype(np.float32)
        unit = self.x / np.sqrt((self.x**2).mean(-1, keepdims=True) + _EPSILON)
        raised = np.exp(unit * scale @ weights)
        self.y: Floats = (raised / raised.sum(-1, keepdims=True)).astype(np.float32)
        self.graph = _graph(scale, weights)


def _graph(scale: Floats, weights: Floats) -> bytes:
    axis = whole("axis", -1)
    nodes = (
        node("SimplifiedLayerNormalization", ("x", "scale"), "normed", axis, real("epsilon", _EPSILON)),
        node("MatMul", ("normed", "weights"), "product"),
        node("Softmax", ("product",), "y", axis),
    )
    given, made = value("x", np.float32, (_ROWS, _COLUMNS)), value("y", np.float32, (_ROWS, _OUTPUTS))
    return small_graph("trial", nodes, [given], [made], tensor("scale", scale), tensor("weights", weights))

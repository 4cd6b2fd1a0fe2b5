"""One step of learning in torch: what the end of a draft model says with adapters, the loss, and an Adam step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from paceline.export.adaptation.graph import PREFIX
from paceline.export.errors import ExportError
from paceline.runtime.adaptation.contract import PREDICTOR
from paceline.runtime.drafters.draw import DOUBT
from paceline.runtime.model.contract import ODDS
from paceline.runtime.ops import packed_matmul as matmul

DECAYS, EPSILON = (0.9, 0.999), 1e-6
"""Of Adam (1412.6980). ONNX's optimiser takes a smaller epsilon for nothing, and 0 / 0 comes of that."""
_LEAST = 1e-3
"""Chance of all tokens together that are not among the likeliest, at least."""
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
_PLAIN: Mapping[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Identity": lambda x: x,
}
_VIEWS = ("Squeeze", "Unsqueeze", "Reshape")
_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")
Tensors = dict[str, Tensor]


class Tail:
    """The end of a draft model as a function of its adapters.

    nodes: what runs, see `graph.tail`; all rows are one row each of [T, ..]. given: the names of the values that it
    reads besides adapters, in order; `matrices` are those of them that are weights of products, as W[N, K].
    Raises ExportError for a node whose meaning is not known here.
    """

    def __init__(self, nodes: Sequence[ir.Node]) -> None:
        self._nodes = nodes
        self.matrices: dict[str, ir.Node] = {}
        self.given: list[str] = []
        made = {value for node in nodes for value in node.outputs}
        for node in nodes:
            if node.op_type not in (*matmul.PRODUCTS, *_PLAIN, *_VIEWS, "Gather", *_NORMS):
                raise ExportError(
                    f"behind its last attention it has {node.op_type}, whose gradient is not known here: leave "
                    "--adapt out"
                )
            for name, value in self._read(node):
                if value in made or str(value.name).startswith(PREFIX):
                    continue
                if name == "weights":
                    self.matrices[str(value.name)] = node
                if str(value.name) not in self.given:
                    self.given.append(str(value.name))

    @staticmethod
    def _read(node: ir.Node) -> list[tuple[str, ir.Value]]:
        """The inputs that matter, by what they are called; scales belong to their matrix."""
        names: Sequence[str] = matmul.PRODUCTS.get(node.op_type, ("x", "y"))
        if node.op_type in _VIEWS or node.op_type == "Gather":
            names = ("x",)
        found = zip(names, node.inputs, strict=False)
        return [(name, value) for name, value in found if value is not None and name != "scales"]

    def __call__(self, adapters: Tensors, given: Tensors) -> tuple[Tensor, Tensor | None]:
        """Logits [T, V], and what is predicted of acceptance [T, 1] where that is, of hidden states as they are."""
        known: Tensors = {**given, **adapters}
        for node in self._nodes:
            inputs = {name: known[str(value.name)] for name, value in self._read(node)}
            if node.name == ODDS:
                inputs["x"] = inputs["x"].detach()
            known[str(node.outputs[0].name)] = _result(node, inputs)
        return known["logits"], known.get(ODDS)


def _result(node: ir.Node, inputs: Tensors) -> Tensor:
    x = inputs["x"]
    if node.op_type in matmul.PRODUCTS:
        return _product(node, inputs)
    if node.op_type in _NORMS:
        return _normed(node, x, inputs["y"])
    if node.op_type in _PLAIN:
        return _PLAIN[node.op_type](*inputs.values())
    return x  # another view of the same rows, or all of them


def _product(node: ir.Node, inputs: Tensors) -> Tensor:
    x, weights = inputs["x"], inputs["weights"]
    if "norm" in inputs:
        x = _normed(node, x, inputs["norm"])
    if weights.ndim == 3:  # a factor of an adapter, packed
        weights = weights.permute(0, 2, 1).reshape(-1, weights.shape[1])[: node.attributes["N"].as_int()]
    y = x @ weights.T
    if "bias" in inputs:
        y = y + inputs["bias"]
    if "activation" in node.attributes:
        gate, up = y.chunk(2, -1)
        y = _ACTIVATIONS[node.attributes["activation"].as_string()](gate) * up
    return y + inputs["residual"] if "residual" in inputs else y


def _normed(node: ir.Node, x: Tensor, weight: Tensor) -> Tensor:
    epsilon = node.attributes.get("epsilon")
    mean = x.pow(2).mean(-1, keepdim=True)
    return x * torch.rsqrt(mean + (epsilon.as_float() if epsilon else 1e-5)) * weight


def loss(
    logits: Tensor, ids: Tensor, probs: Tensor, weight: Tensor, label: Tensor, label_weight: Tensor
) -> Tensor:
    """OmniDraft's hybrid loss (2507.02659): reverse KL on mapped tokens, and likelihood of the pieces of others.

    logits [T, V] of the draft model. ids, probs [T, k]: tokens that the target finds likeliest, in the draft model's
    vocabulary, and their chances; 0 for a place that is not used. All other tokens are one: the divergence is that of
    what is known. weight [T], label [T] and label_weight [T]: how much the law, and the next token, of a row count.
    """
    said = torch.log_softmax(logits, -1)
    used = (probs > 0).to(said.dtype)
    log_q = said.gather(1, ids)
    q = log_q.exp() * used
    rest_q = (1 - q.sum(-1)).clamp(min=EPSILON)
    rest_p = (1 - probs.sum(-1)).clamp(min=_LEAST)
    divergence = (q * (log_q - torch.log(probs.clamp(min=EPSILON)))).sum(-1) + rest_q * torch.log(
        rest_q / rest_p
    )
    unlikely = -said.gather(1, label[:, None])[:, 0]
    count = (weight + (label_weight > 0).to(said.dtype)).sum().clamp(min=1.0)
    return (weight * divergence + label_weight * unlikely).sum() / count


def predicting_loss(
    odds: Tensor,
    logits: Tensor,
    ids: Tensor,
    probs: Tensor,
    weight: Tensor,
    label: Tensor,
    label_weight: Tensor,
) -> Tensor:
    """Binary cross entropy of predicted acceptance, with soft labels min(1, p/q) (2405.19715, 2507.02659).

    odds [T, 1] correct the draft model's own score of its likeliest token, as the greedy draw has it; the label is the
    chance min(1, p/q) that this token is accepted, or whether it is the next piece. All else as in `loss`; of logits no
    gradient is taken, so that drafts do not become worse in order to be predicted better.
    """
    logits = logits.detach()
    token = logits.argmax(-1, keepdim=True)
    own = torch.softmax(logits / DOUBT, -1).gather(1, token).clamp(EPSILON, 1 - EPSILON)
    p = (probs * (ids == token).to(probs.dtype)).sum(-1)
    wanted = (p / torch.softmax(logits, -1).gather(1, token)[:, 0]).clamp(max=1.0)
    piece = (label_weight > 0).to(probs.dtype)
    wanted = wanted + (1 - wanted) * piece * (label == token[:, 0]).to(probs.dtype)
    said = torch.logit(own)[:, 0] + odds[:, 0]
    lost = functional.softplus(said) - wanted * said
    counts = weight + (1 - weight) * piece
    return (counts * lost).sum() / counts.sum().clamp(min=1.0)


def make_step(tail: Tail, names: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
    """A function of flat arguments, for tracing: adapters, first and second moments, step, rate, the sample, `given`.

    It returns new adapters and moments, and the loss [1] before the step, of the adapters alone. The group of adapters
    whose rate is 0 stays as it is.
    """
    count = len(names)
    group = [int(name == PREDICTOR) for name in names]

    def step(*arguments: Any) -> tuple[Tensor, ...]:
        weights, first, second = (arguments[i * count : (i + 1) * count] for i in range(3))
        number, rate, ids, probs, weight, label, label_weight, *rest = arguments[3 * count :]
        given = dict(zip(tail.given, rest, strict=True))

        def lost(*adapters: Tensor) -> tuple[Tensor, Tensor]:
            logits, odds = tail(dict(zip(names, adapters, strict=True)), given)
            laws = ids, probs, weight, label, label_weight
            own = loss(logits, *laws)
            return own if odds is None else own + predicting_loss(odds, logits, *laws), own

        gradients, (_, value) = torch.func.grad_and_value(lost, argnums=tuple(range(count)), has_aux=True)(
            *weights
        )
        found: list[list[Tensor]] = [[], [], []]
        for at, w, g, m, v in zip(group, weights, gradients, first, second, strict=True):
            now, n, r = (w, m, v), number[at : at + 1], rate[at : at + 1]
            m = DECAYS[0] * m + (1 - DECAYS[0]) * g
            v = DECAYS[1] * v + (1 - DECAYS[1]) * g * g
            upright = m / (1 - DECAYS[0] ** n)
            w = w - r * upright / (torch.sqrt(v / (1 - DECAYS[1] ** n)) + EPSILON)
            for kept, old, new in zip(found, now, (w, m, v), strict=True):
                kept.append(torch.where(r == 0, old, new))
        return (*found[0], *found[1], *found[2], value.reshape(1))

    return step

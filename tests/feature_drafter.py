"""A toy head over a target's hidden states: a graph, its place in a bundle, and a drafter that runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.kinds import Features, Kind, Supplies
from paceline.runtime.manifest import File, Part, read_manifest, write_manifest
from paceline.runtime.model.head import Head
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

TAPS = ("hidden", "hidden.0")
AHEAD = 2


def write_head(folder: Path, seed: int = 3) -> Part:
    """Add a head of random weights, called `toy`, to a bundle whose target gives TAPS."""
    manifest = read_manifest(folder)
    target = manifest.target
    columns, wide = len(TAPS) * target.hidden, AHEAD * target.vocab
    rng = np.random.default_rng(seed)
    constants = {
        "head": rng.normal(size=(columns, wide)).astype(np.float32),
        "embedding": rng.normal(size=(target.vocab, wide)).astype(np.float32),
        "shape": np.array([-1, AHEAD, target.vocab], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["features", "head"], ["seen"]),
        helper.make_node("Gather", ["embedding", "token_ids"], ["said"]),
        helper.make_node("Add", ["seen", "said"], ["both"]),
        helper.make_node("Add", ["both", "bias"], ["learnt"]),
        helper.make_node("Reshape", ["learnt", "shape"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["T"]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["T", columns]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, [wide]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", AHEAD, target.vocab])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    raw = model.SerializeToString()
    path = "drafters/toy/model.onnx"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(raw)
    part = Part(
        graph=path,
        architecture="toy head",
        layers=1,
        kv_heads=1,
        head_dim=1,
        hidden=target.hidden,
        vocab=target.vocab,
        context=target.context,
        parameters=1,
        quant="none",
        caches={},
        kind="head",
        reads=list(TAPS),
        features=columns,
        ahead=AHEAD,
        adapters={"bias": [wide]},
    )
    files = {**manifest.files, path: File(len(raw), hashlib.sha256(raw).hexdigest())}
    write_manifest(
        msgspec.structs.replace(manifest, drafters={**manifest.drafters, "toy": part}, files=files), folder
    )
    return part


@dataclass
class Witness:
    """What a drafter was shown of the target's hidden states: (first row, rows) by tap, and the rows it read again."""

    shown: list[np.ndarray] = field(default_factory=list)
    caught_up: list[range] = field(default_factory=list)


class HeadChain:
    """Proposes the token after the next one, as a head reads it from the hidden states of the last committed token."""

    needs = frozenset(TAPS)

    def __init__(self, name: str, features: Features, head: Head, witness: Witness) -> None:
        self.name, self._features, self._head, self._witness = name, features, head, witness
        self._seen = 0

    def footprint(self, limit: DraftLimit) -> int:
        return 0

    def begin(self, request: Request) -> None:
        pass

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        committed, held = len(tokens) - 1, self._features.held
        self._seen = min(self._seen, committed)
        if self._seen < committed and held.start > self._seen:
            return TokenTree.root(tokens[-1])  # what it missed cannot be read again
        if self._seen < committed:
            self._witness.caught_up.append(range(self._seen, committed))
            self._seen = committed
        if min(limit.nodes, limit.depth) < 1 or not committed:
            return TokenTree.root(tokens[-1])
        row = np.hstack([self._features.rows(tap, committed - 1, committed) for tap in TAPS])
        logits = self._head.score(tokens[committed - 1 : committed], row)
        return TokenTree.chain([tokens[-1], int(logits[0, AHEAD - 1].argmax())], self.name)

    def observe(self, outcome: Outcome) -> None:
        rows = list(outcome.verdict.path)
        self._witness.shown.append(np.hstack([outcome.scored.extras[tap][rows] for tap in TAPS]))

    def reset(self) -> None:
        self._seen = 0


def kind_of(witness: Witness) -> Kind:
    """The row of the toy for `KINDS`."""

    def make(name: str, supplies: Supplies) -> HeadChain:
        assert supplies.features is not None
        assert supplies.head is not None
        return HeadChain(name, supplies.features, supplies.head, witness)

    return Kind(
        word="witness",
        make=make,
        runs="head",
        feeds="features",
        depth=1,
        rows=1,
        bytes=lambda extent: 0,
        flat=0.0,
        seeing=0.0,
        usual=0.1,
        hope=0.95,
    )

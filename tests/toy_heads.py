"""Toy heads: graphs of the contract written by hand over any weights, alone or as a part of a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paceline.export.bodies_attention import Heads, tree_attention_function
from paceline.memory.cache import CacheFormat
from paceline.runtime.manifest import File, Part, Weight, read_manifest, write_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.head import Head
from paceline.runtime.model.model import Model

OPSET = 23
HEADS = Heads(2, 2, 8)
WIDE = HEADS.query * HEADS.size
FORMS: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Toy:
    """Weights: reads [F, S] and says [V, S] make a state of hidden states and a token, turns [S, S] the next state,
    speaks [S, Vd] the logits. ids: the target's, of each logit. attends: q, k, v and o, [S, S] each, or nothing.
    adapts: whether `bias` [Vd] is an input that adapts the logits."""

    reads: np.ndarray
    says: np.ndarray
    turns: np.ndarray
    speaks: np.ndarray
    ids: np.ndarray
    attends: tuple[np.ndarray, ...] = ()
    adapts: bool = False

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """All that stand in the file of weights."""
        named = {"reads": self.reads, "says": self.says, "turns": self.turns, "speaks": self.speaks}
        return named | dict(zip("qkvo", self.attends, strict=False))


def random_toy(columns: int, vocab: int, ids: Sequence[int], attends: bool, seed: int = 3) -> Toy:
    """A head of random weights, sure enough of itself to draft."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape, scale=shape[0] ** -0.5).astype(np.float32)

    layer = tuple(normal(WIDE, WIDE) for _ in range(4)) if attends else ()
    return Toy(
        normal(columns, WIDE),
        rng.normal(size=(vocab, WIDE)).astype(np.float32),
        normal(WIDE, WIDE),
        3 * normal(WIDE, len(ids)),
        np.array(ids, np.int64),
        layer,
    )


def known_toy(columns: int, follows: Sequence[int]) -> Toy:
    """A head that is sure that token t is followed by `follows[t]`, whatever it reads."""
    vocab = len(follows)
    speaks = np.zeros((vocab, vocab), np.float32)
    speaks[np.arange(vocab), list(follows)] = 30.0
    nothing = np.zeros((columns, vocab), np.float32)
    identity = np.eye(vocab, dtype=np.float32)
    return Toy(nothing, identity, np.zeros_like(identity), speaks, np.arange(vocab))


class _Writer:
    """Nodes of one graph; every result has a name of its own."""

    def __init__(self, toy: Toy, form: CacheFormat) -> None:
        self.toy, self.form = toy, form
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {"ids": toy.ids}

    def do(
        self, operator: str, *inputs: str, to: str | None = None, domain: str = "", **attributes: object
    ) -> str:
        result = to or f"r{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [result], domain=domain, **attributes))
        return result

    def best(self, x: str, count: int) -> tuple[str, str]:
        """The best values of the last axis, and their places."""
        values, places = f"r{len(self.nodes)}", f"p{len(self.nodes)}"
        self.nodes.append(helper.make_node("TopK", [x, self.numbers(count)], [values, places], axis=-1))
        return values, places

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def heads(self, x: str, matrix: str) -> str:
        """[1, heads, T, size]."""
        shape = self.numbers(1, -1, HEADS.query, HEADS.size)
        return self.do(
            "Transpose", self.do("Reshape", self.do("MatMul", x, matrix), shape), perm=[0, 2, 1, 3]
        )

    def attend(self, x: str, keys: str, values: str, mask: str, positions: str) -> str:
        """x with what its rows see."""
        scales = ("", "k_scales.0", "v_scales.0") if self.form == "int8" else ()
        seen = self.do(
            "TreeAttention", self.heads(x, "q"), keys, values, "cache_k.0", "cache_v.0", "past_len", mask, positions,
            *scales, domain="paceline", scale=HEADS.size**-0.5,
        )  # fmt: skip
        merged = self.do("Reshape", self.do("Transpose", seen, perm=[0, 2, 1, 3]), self.numbers(-1, WIDE))
        return self.do("Add", x, self.do("MatMul", merged, "o"))

    def model(
        self, inputs: dict[str, tuple[int, list[object]]], outputs: dict[str, tuple[int, list[object]]]
    ):
        tensors = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        offset = 0
        for name, array in self.toy.weights.items():
            tensor = TensorProto(
                name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += -(-array.nbytes // 4096) * 4096
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "head",
            [value(name, *kind) for name, kind in inputs.items()],
            [value(name, *kind) for name, kind in outputs.items()],
            tensors,
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("paceline", 1)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=11)
        if self.toy.attends:
            made.functions.append(tree_attention_function(OPSET, heads=HEADS, capped=False, cache=self.form))
        return made

    def fixed(self) -> dict[str, tuple[int, list[object]]]:
        """Inputs of the cache, and adapters."""
        bias: dict[str, tuple[int, list[object]]] = (
            {"bias": (TensorProto.FLOAT, [len(self.toy.ids)])} if self.toy.adapts else {}
        )
        if not self.toy.attends:
            return bias
        kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}[self.form]
        found: dict[str, tuple[int, list[object]]] = {"past_len": (TensorProto.INT64, [1]), **bias}
        for name in "kv":
            found[f"cache_{name}.0"] = (kind, [HEADS.key, "S", HEADS.size])
            if self.form == "int8":
                found[f"{name}_scales.0"] = (TensorProto.FLOAT, [HEADS.key, "S"])
        return found


def read_graph(toy: Toy, form: CacheFormat) -> onnx.ModelProto:
    """From pairs to states."""
    w, columns = _Writer(toy, form), toy.reads.shape[0]
    width = toy.says.shape[1]
    state = w.do("Add", w.do("MatMul", "features", "reads"), w.do("Gather", "says", "token_ids"))
    inputs: dict[str, tuple[int, list[object]]] = {
        "token_ids": (TensorProto.INT64, ["T"]),
        "rows": (TensorProto.INT64, ["R"]),
        "features": (TensorProto.FLOAT, ["T", columns]),
    }
    outputs: dict[str, tuple[int, list[object]]] = {"state": (TensorProto.FLOAT, ["R", width])}
    if toy.attends:
        keys, values = w.heads(state, "k"), w.heads(state, "v")
        for name, rows in (("k", keys), ("v", values)):
            w.do("Squeeze", rows, w.numbers(0), to=f"new_{name}.0")
            outputs[f"new_{name}.0"] = (TensorProto.FLOAT, [HEADS.key, "T", HEADS.size])
        state = w.attend(state, keys, values, "tree_mask", "positions")
        inputs |= {"positions": (TensorProto.INT64, ["T"]), "tree_mask": (TensorProto.BOOL, ["T", "W"])}
    w.do("Gather", state, "rows", to="state")
    return w.model(inputs | w.fixed(), outputs)


def draft_graph(toy: Toy, form: CacheFormat, levels: int) -> onnx.ModelProto:
    """From a state to so many tokens. One that attends has seen the root already; the other one is told of it."""
    w, columns = _Writer(toy, form), len(toy.ids)
    state, rows = "state", dict[str, list[str]](k=[], v=[])
    tokens, scores, queries = [], [], ""
    if not toy.attends:
        state = w.do("Add", "state", w.do("MatMul", w.do("Gather", "says", "token"), "turns"))
    for level in range(levels):
        noise = w.do("Slice", "noise", w.numbers(level), w.numbers(level + 1), w.numbers(0))
        logits = w.do("MatMul", state, "speaks")
        scores.append(w.do("Add", w.do("Add", logits, "bias") if toy.adapts else logits, noise))
        tokens.append(w.do("Gather", "ids", w.do("ArgMax", scores[-1], axis=1, keepdims=0)))
        said = w.do("Gather", "says", tokens[-1])
        state = w.do("Add", w.do("MatMul", state, "turns"), said)
        if toy.attends and level + 1 < levels:
            for name, made in rows.items():
                made.append(w.heads(state, name))
            n = level + 1
            keys, values = (w.do("Concat", *rows[name], axis=2) if n > 1 else rows[name][0] for name in "kv")
            queries = state if n == 1 else w.do("Concat", queries, state, axis=0)
            positions = w.do("Add", "past_len", w.constant(np.arange(n)))
            seen = w.attend(queries, keys, values, w.constant(np.tri(n, dtype=bool)), positions)
            state = w.do("Slice", seen, w.numbers(n - 1), w.numbers(n), w.numbers(0))
    w.do("Concat", *tokens, to="tokens", axis=0)
    w.do("Concat", *scores, to="scores", axis=0)
    inputs: dict[str, tuple[int, list[object]]] = {
        "state": (TensorProto.FLOAT, [1, toy.says.shape[1]]),
        "token": (TensorProto.INT64, [1]),
        "noise": (TensorProto.FLOAT, [levels, columns]),
    }
    outputs = {"tokens": (TensorProto.INT64, [levels]), "scores": (TensorProto.FLOAT, [levels, columns])}
    return w.model(inputs | w.fixed(), outputs)


def tree_graph(toy: Toy, form: CacheFormat, depth: int, width: int) -> onnx.ModelProto:
    """From a state to a tree of so many levels, `width` nodes of each with children."""
    w, columns = _Writer(toy, form), len(toy.ids)
    children = min(8, columns)
    state, rows = "state", dict[str, list[str]](k=[], v=[])
    tokens, chances, parents = [], [], []
    queries = path = above = ""
    if not toy.attends:
        state = w.do("Add", "state", w.do("MatMul", w.do("Gather", "says", "token"), "turns"))
    for level in range(depth):
        noise = w.do("Slice", "noise", w.numbers(level), w.numbers(level + 1), w.numbers(0))
        logits = w.do("MatMul", state, "speaks")
        logits = w.do("Add", logits, "bias") if toy.adapts else logits
        scores = w.do("Add", logits, noise, to=None if level else "scores")
        law = w.do("LogSoftmax", w.do("Mul", scores, "scale"), axis=-1)
        values, places = w.best(law, children)
        tokens.append(w.do("Gather", "ids", places))
        chances.append(values)
        if level + 1 == depth:
            break
        sums = w.do("Reshape", w.do("Add", values, above) if above else values, w.numbers(-1))
        above, chosen = w.best(sums, width)
        above = w.do("Unsqueeze", above, w.numbers(1))
        parents.append(chosen)
        slots = w.do("Div", chosen, w.numbers(children))
        said = w.do("Gather", "says", w.do("Gather", w.do("Reshape", tokens[-1], w.numbers(-1)), chosen))
        state = w.do("Add", w.do("MatMul", w.do("Gather", state, slots), "turns"), said)
        if toy.attends:
            for name, made in rows.items():
                made.append(w.heads(state, name))
            n, own = level + 1, w.constant(np.eye(width, dtype=bool))
            path = w.do("Concat", w.do("Gather", path, slots), own, axis=1) if level else own
            mask = path
            if level:
                mask = w.do("Concat", w.constant(np.eye(level * width, n * width, dtype=bool)), path, axis=0)
            keys, values = (w.do("Concat", *rows[name], axis=2) if n > 1 else rows[name][0] for name in "kv")
            queries = w.do("Concat", queries, state, axis=0) if level else state
            positions = w.do("Add", "past_len", w.constant(np.repeat(np.arange(n), width)))
            seen = w.attend(queries, keys, values, mask, positions)
            state = w.do("Slice", seen, w.numbers(level * width), w.numbers(n * width), w.numbers(0))
    for name, made in (("tokens", tokens), ("chances", chances), ("parents", parents)):
        w.do("Concat", *made, to=name, axis=0)
    later = (depth - 1) * width
    inputs: dict[str, tuple[int, list[object]]] = {
        "state": (TensorProto.FLOAT, [1, toy.says.shape[1]]),
        "token": (TensorProto.INT64, [1]),
        "noise": (TensorProto.FLOAT, [depth, columns]),
        "scale": (TensorProto.FLOAT, [1]),
    }
    outputs = {
        "tokens": (TensorProto.INT64, [1 + later, children]),
        "chances": (TensorProto.FLOAT, [1 + later, children]),
        "parents": (TensorProto.INT64, [later]),
        "scores": (TensorProto.FLOAT, [1, columns]),
    }
    return w.model(inputs | w.fixed(), outputs)


def write_part(
    folder: Path,
    toy: Toy,
    reads: Sequence[str],
    context: int,
    depths: Sequence[int],
    place: str = "drafters/toy",
    trees: Sequence[tuple[int, int]] = (),
) -> tuple[Part, dict[str, File]]:
    """Write all files of a head into a bundle's folder; returns its part and the files."""
    layers, forms = (1, FORMS) if toy.attends else (0, FORMS[:1])
    data, listed = b"", {}
    for name, array in toy.weights.items():
        listed[name] = Weight("float32", list(array.shape), len(data))
        data += array.tobytes() + bytes(-array.nbytes % 4096)
    made = {"model.onnx.data": data, "vocabulary.u32": toy.ids.astype("<u4").tobytes()}
    for form in forms:
        end = "onnx" if form == "fp32" else f"{form}.onnx"
        made[f"model.{end}"] = read_graph(toy, form).SerializeToString()
        made |= {f"tree.{d}x{w}.{end}": tree_graph(toy, form, d, w).SerializeToString() for d, w in trees}
        made |= {f"draft.{n}.{end}": draft_graph(toy, form, n).SerializeToString() for n in depths}
    files = {f"{place}/{name}": File(len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in made.items()}
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, raw in made.items():
        (folder / place / name).write_bytes(raw)
    part = Part(
        graph=f"{place}/model.onnx",
        architecture="toy head",
        layers=layers,
        kv_heads=HEADS.key,
        head_dim=HEADS.size,
        hidden=toy.says.shape[1],
        vocab=len(toy.ids),
        context=context,
        parameters=sum(array.size for array in toy.weights.values()),
        quant="none",
        weights=listed,
        caches={form: f"{place}/model.{form}.onnx" for form in forms[1:]},
        kind="head",
        reads=list(reads),
        features=toy.reads.shape[0],
        vocabulary=f"{place}/vocabulary.u32",
        drafts={n: f"{place}/draft.{n}.onnx" for n in depths},
        trees={f"{d}x{w}": f"{place}/tree.{d}x{w}.onnx" for d, w in trees},
        adapters={"bias": [len(toy.ids)]} if toy.adapts else {},
        method="toy",
    )
    return part, files


def add_head(folder: Path, name: str, toy: Toy, reads: Sequence[str], depths: Sequence[int]) -> Part:
    """Add a head to a bundle."""
    manifest = read_manifest(folder)
    place = f"drafters/{name}"
    part, files = write_part(folder, toy, reads, manifest.target.context, depths, place)
    drafters, files = {**manifest.drafters, name: part}, {**manifest.files, **files}
    write_manifest(msgspec.structs.replace(manifest, drafters=drafters, files=files), folder)
    return part


class Opened:
    """The graphs of a toy head that stands alone."""

    def __init__(
        self,
        toy: Toy,
        context: int,
        depths: Sequence[int],
        form: CacheFormat = "fp32",
        trees: Sequence[tuple[int, int]] = (),
    ) -> None:
        folder = Path(mkdtemp(prefix="toy-head-"))
        self.form: CacheFormat = form
        self.ids = toy.ids
        self.part, _ = write_part(folder, toy, ["hidden"], context, depths, trees=trees)
        self.graphs = {
            path: Graph(folder / path, find_device("cpu"), 1, self.part)
            for path in self.part.graphs_for(form)
        }

    def head(self, context: int | None = None, chunk: int = 16) -> Head:
        """One with a cache and buffers of its own."""
        part = self.part
        read = self.graphs[part.graph_for(self.form)]
        model = Model(read, part, context or part.context, 1, chunk, cache=self.form)
        return Head(model, self.ids, lambda path: self.graphs[path])


@cache
def opened(
    vocab: int,
    ids: tuple[int, ...],
    attends: bool,
    columns: int = 4,
    form: CacheFormat = "fp32",
    trees: tuple[tuple[int, int], ...] = (),
) -> Opened:
    """A random head for a target of so many tokens and hidden states of so many columns."""
    return Opened(random_toy(columns, vocab, ids, attends), 4096, (1, 2, 3, 5), form, trees)

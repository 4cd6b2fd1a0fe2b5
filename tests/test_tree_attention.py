"""`paceline::TreeAttention`: the ONNX function body does what the numpy reference says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")
from attention_scenes import Turned, random_turned, turn  # noqa: E402
from body_runner import body_model  # noqa: E402
from body_runner import session as body_session  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from paceline.export.bodies_attention import Heads, tree_attention_function  # noqa: E402
from paceline.runtime.ops import library  # noqa: E402
from paceline.runtime.ops import tree_attention as contract  # noqa: E402

OPSET = 23
SESSIONS: dict[tuple[object, ...], ort.InferenceSession] = {}


def model(
    heads: Heads, *, fixed: bool, layers: int = 1, scale: float = 0.3, window: int = 0, softcap: float = 0.0
):
    """`layers` attention nodes on inputs of their own; past_len, tree_mask and positions are shared."""
    nodes, inputs, outputs = [], [], []
    for i in range(layers):
        q, new = [1, heads.query, "T", heads.size], [1, heads.key, "T", heads.size]
        cache = [heads.key, "S", heads.size]
        shapes = {"q": q, "k_new": new, "v_new": new, "cache_k": cache, "cache_v": cache}
        names = {name: f"{name}.{i}" for name in shapes}
        inputs += [helper.make_tensor_value_info(names[n], TensorProto.FLOAT, s) for n, s in shapes.items()]
        outputs.append(helper.make_tensor_value_info(f"out.{i}", TensorProto.FLOAT, q))
        attributes = {"scale": scale, "window": window, "softcap": softcap}
        given_names = [names.get(name, name) for name in contract.INPUTS]
        nodes.append(
            helper.make_node(contract.NAME, given_names, [f"out.{i}"], domain=contract.DOMAIN, **attributes)
        )
    inputs += [
        helper.make_tensor_value_info("past_len", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("tree_mask", TensorProto.BOOL, ["T", "W"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["T"]),
    ]
    body = tree_attention_function(OPSET, heads=heads if fixed else None, capped=softcap > 0)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(contract.DOMAIN, contract.VERSION)]
    graph = helper.make_graph(nodes, "attention", inputs, outputs)
    built = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[body])
    onnx.checker.check_model(built)
    return built


def session(built, optimised: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])


@st.composite
def cases(draw):
    key, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 8]))
    rows, waiting, committed = draw(st.integers(1, 6)), draw(st.integers(0, 4)), draw(st.integers(0, 12))
    spare = draw(st.integers(0, 5))
    window, softcap = draw(st.sampled_from([0, 1, 3, 50])), draw(st.sampled_from([0.0, 1.5]))
    return (
        Heads(key * groups, key, size),
        rows,
        waiting,
        committed,
        spare,
        window,
        softcap,
        draw(st.integers(0, 2**31)),
    )


def tensors(
    heads: Heads, rows: int, waiting: int, committed: int, spare: int, seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    past = committed + waiting

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    mask = rng.random((rows, waiting + rows)) < 0.5
    mask[:, waiting:] = np.tril(mask[:, waiting:]) | np.eye(rows, dtype=bool)
    cache_k = floats(heads.key, past + spare, heads.size)
    cache_v = floats(heads.key, past + spare, heads.size)
    cache_k[:, past:] = cache_v[:, past:] = np.nan
    return {
        "q": floats(1, heads.query, rows, heads.size),
        "k_new": floats(1, heads.key, rows, heads.size),
        "v_new": floats(1, heads.key, rows, heads.size),
        "cache_k": cache_k,
        "cache_v": cache_v,
        "past_len": np.array([past], np.int64),
        "tree_mask": mask,
        "positions": committed + rng.integers(0, 6, rows),
    }


def run(built: ort.InferenceSession, feed: dict[str, np.ndarray]) -> np.ndarray:
    names = {i.name for i in built.get_inputs()}
    return built.run(None, {f"{n}.0" if f"{n}.0" in names else n: value for n, value in feed.items()})[0]


def cached_session(heads: Heads, fixed: bool, window: int, softcap: float) -> ort.InferenceSession:
    key = (heads, fixed, window, softcap)
    if key not in SESSIONS:
        SESSIONS[key] = session(model(heads, fixed=fixed, window=window, softcap=softcap))
    return SESSIONS[key]


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_the_function_body_computes_the_reference(case, fixed: bool) -> None:
    heads, rows, waiting, committed, spare, window, softcap, seed = case
    feed = tensors(heads, rows, waiting, committed, spare, seed)
    wanted = contract.reference(**feed, scale=0.3, window=window, softcap=softcap)
    got = run(cached_session(heads, fixed, window, softcap), feed)
    assert np.abs(got - wanted).max() < 1e-5


@settings(max_examples=50, deadline=None)
@given(cases())
def test_a_row_does_not_depend_on_the_other_query_rows(case) -> None:
    heads, rows, waiting, committed, spare, window, softcap, seed = case
    feed = tensors(heads, rows, waiting, committed, spare, seed)
    node = cached_session(heads, True, window, softcap)
    before = run(node, feed)
    feed["q"][:, :, 1:] *= 7
    assert np.array_equal(run(node, feed)[:, :, 0], before[:, :, 0])


def test_the_reference_without_a_cache_is_plain_causal_attention() -> None:
    feed = tensors(Heads(4, 2, 8), 5, 0, 0, 0, 1) | {
        "tree_mask": np.tril(np.ones((5, 5), bool)),
        "positions": np.arange(5),
    }
    got = contract.reference(**feed, scale=0.5)
    for head in range(4):
        for row in range(5):
            scores = feed["k_new"][0, head // 2, : row + 1] @ feed["q"][0, head, row] * 0.5
            weights = np.exp(scores) / np.exp(scores).sum()
            assert np.allclose(got[0, head, row], weights @ feed["v_new"][0, head // 2, : row + 1], atol=1e-6)


def test_a_window_changes_the_result() -> None:
    """Negative control: the property test would notice a body without windows."""
    feed = tensors(Heads(2, 1, 8), 3, 0, 12, 0, 1)
    wide, narrow = (contract.reference(**feed, scale=0.3, window=window) for window in (0, 3))
    assert np.abs(wide - narrow).max() > 0.01


def test_more_waiting_columns_than_cache_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="past_len is 1"):
        contract.visible(1, np.ones((1, 3), bool), np.array([0]), 0)


TURNED = [
    {"rotary": 32, "normed": True},
    {"rotary": 16, "normed": False},
    {"rotary": 24, "normed": True, "interleaved": 1},
]


def rotary_body(turned: Turned) -> list[np.ndarray]:
    """The result of the function body of RotaryTreeAttention."""
    constants = {name: turned.given[name] for name in ("q_norm", "k_norm") if name in turned.given}
    fed = {name: array for name, array in turned.given.items() if name not in constants}
    order = tuple(name if name in turned.given else "" for name in contract.ROTARY_INPUTS)
    body = body_model(contract.ROTARY_NAME, order, constants, fed, outputs=3, **turned.attributes)
    return body_session(body).run(None, fed)


@pytest.mark.parametrize("options", TURNED, ids=str)
def test_the_rotary_body_norms_and_turns_heads_and_then_attends(options) -> None:
    turned = random_turned("float32", **options)
    given, scene = turned.given, turned.scene
    rows, size = len(given["positions"]), 32
    heads = given["qkv"][0].reshape(rows, -1, size).transpose(1, 0, 2)
    q, k, v = heads[:4], heads[4:6], heads[6:]
    if options["normed"]:
        q, k = (
            x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * given[name]
            for x, name in ((q, "q_norm"), (k, "k_norm"))
        )
    q, k = (turn(x, given["cos"][0], given["sin"][0], options.get("interleaved", 0)) for x in (q, k))
    wanted = contract.reference(
        q[None],
        k[None],
        v[None],
        *(given[name] for name in ("cache_k", "cache_v", "past_len", "tree_mask", "positions")),
        **scene.attributes,
    )
    out, new_k, new_v = rotary_body(turned)
    assert np.abs(out[0] - wanted[0].transpose(1, 0, 2).reshape(rows, -1)).max() < 1e-5
    assert np.abs(new_k - k).max() < 1e-5
    assert np.array_equal(new_v, v)


@pytest.mark.skipif(not library.available(), reason="the native kernels were not built here")
@pytest.mark.parametrize("options", TURNED, ids=str)
def test_rotary_kernel_and_body_agree(options) -> None:
    turned = random_turned("float32", **options)
    for ours, theirs in zip(rotary_body(turned), turned.node()(), strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(("softcap", "per_layer"), [(0.0, 13), (2.0, 15)])
def test_masks_are_computed_once_for_all_layers(softcap: float, per_layer: int, tmp_path: Path) -> None:
    counts = []
    for layers in (2, 3):
        session(
            model(Heads(4, 2, 8), fixed=True, layers=layers, softcap=softcap), tmp_path / "optimised.onnx"
        )
        nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
        kinds = Counter(node.op_type for node in nodes)
        assert kinds["Where"] == kinds["Tile"] == kinds["Range"] == 1
        counts.append(len(nodes))
    assert counts[1] - counts[0] == per_layer

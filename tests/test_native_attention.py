"""`TreeAttention` and `RotaryTreeAttention` in the native library: right, and the same bits however they are run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from attention_scenes import CACHES, random_scene, random_turned, turn
from one_node import Array, OneNode, kernels_of

from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.ops import library
from paceline.runtime.ops import tree_attention as contract

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(not library.available(), reason="the native kernels were not built here"),
]


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize(
    "shape",
    [
        {}, {"rows": 1}, {"past": 0}, {"past": 64, "rows": 64}, {"heads": (3, 3), "size": 7}, {"heads": (8, 1)},
        {"window": 40}, {"softcap": 2.0}, {"sinks": True}, {"sinks": True, "window": 30, "rows": 3},
    ],
    ids=str,
)  # fmt: skip
def test_tree_attention_is_what_the_reference_says(kind: str, shape: dict[str, Any]) -> None:
    scene = random_scene(kind, **shape)
    expected = scene.reference()
    (out,) = scene.node()()
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() < 2e-6


@pytest.mark.parametrize("end", [-(2**63), 2**63 - 1])
def test_a_window_holds_at_the_ends_of_all_numbers(end: int) -> None:
    """At the lowest position all rows of the cache are inside, at the highest none; new rows see each other."""
    scene = random_scene("float32", window=40, rows=4, past=100)
    positions = np.full(4, end, np.int64)
    endless = replace(scene, attributes=scene.attributes | {"window": 0}, past=0 if end > 0 else scene.past)
    for level in library.levels():
        with kernels_of(level):
            (out,) = scene.node(positions=positions)()
        assert np.abs(out - endless.reference()).max() < 2e-6


@pytest.mark.parametrize("kind", CACHES)
def test_parents_say_what_their_mask_says(kind: str) -> None:
    scene = random_scene(kind)
    masked = scene.node()()[0]
    assert scene.node(tree_mask=np.array(scene.parents, np.int64))()[0].tobytes() == masked.tobytes()


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("options", [{}, {"window": 50}, {"softcap": 3.0, "sinks": True}], ids=str)
@pytest.mark.parametrize("past", [0, 60, 127, 128])
def test_a_row_has_the_same_bits_whether_its_ancestors_stand_in_the_cache_or_beside_it(
    kind: str, options: dict[str, Any], past: int
) -> None:
    scene = random_scene(kind, rows=17, past=past, seed=past, **options)
    (out,) = scene.node()()
    for node in range(17):
        for waiting in (False, True):
            alone = scene.alone(node, waiting=waiting)
            assert alone.tobytes() == out[:, :, node : node + 1].tobytes(), (node, waiting)


@pytest.mark.parametrize("kind", CACHES)
def test_threads_and_instruction_sets_do_not_change_a_bit(kind: str) -> None:
    scene = random_scene(kind, rows=33, past=700, heads=(4, 2), size=64)
    (out,) = scene.node()()
    for level in library.levels():
        with kernels_of(level):
            for threads in (1, 2):
                assert scene.node(threads=threads)()[0].tobytes() == out.tobytes(), (level, threads)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize(
    ("rotary", "normed", "interleaved"), [(32, False, 0), (32, True, 0), (20, True, 1), (2, False, 0)]
)
def test_rotary_attention_norms_and_turns_heads_and_then_attends(
    kind: str, rotary: int, normed: bool, interleaved: int
) -> None:
    turned = random_turned(kind, rotary=rotary, normed=normed, interleaved=interleaved)
    given = turned.given
    heads = given["qkv"][0].reshape(9, 8, 32).transpose(1, 0, 2).astype(np.float64)
    q, k, v = heads[:4], heads[4:6], heads[6:]
    if normed:
        q, k = (
            a / np.sqrt((a**2).mean(axis=-1, keepdims=True) + 1e-6) * given[name]
            for a, name in ((q, "q_norm"), (k, "k_norm"))
        )
    q, k = (turn(a, given["cos"][0], given["sin"][0], interleaved).astype(np.float32) for a in (q, k))
    scene = replace(turned.scene, q=q[None], k=k[None], v=v[None].astype(np.float32))
    out, new_k, new_v = turned.node()()
    step = {"float32": 1e-6, "float16": 4e-3, "int8": np.abs(k).max() / 100}[kind]
    assert np.abs(new_k - k).max() < step
    assert np.abs(new_v - v).max() < step
    expected = scene.reference()[0].transpose(1, 0, 2).reshape(1, 9, 128)
    assert np.abs(out - expected).max() < (3e-6 if kind == "float32" else 2e-2)


@pytest.mark.parametrize("kind", CACHES)
def test_new_rows_stored_in_the_cache_give_later_rows_the_same_bits(kind: str) -> None:
    turned = random_turned(kind, rotary=32, normed=True, rows=14)
    scene, past = turned.scene, turned.scene.past
    out, new_k, new_v = turned.node()()
    for node in range(14):
        *before, last = scene.path(node)
        cache_k, cache_v = scene.cache_k.copy(), scene.cache_v.copy()
        for at, ancestor in enumerate(before, past):
            cache_k[:, at], cache_v[:, at] = new_k[:, ancestor], new_v[:, ancestor]
        grown = replace(scene, cache_k=cache_k, cache_v=cache_v).cached()
        own = slice(last, last + 1)
        (alone, k, v) = turned.node(
            **{name: turned.given[name][:, own] for name in ("qkv", "cos", "sin")},
            **grown,
            past_len=np.array([past + len(before)], np.int64),
            tree_mask=np.ones((1, 1), np.bool_),
            positions=scene.positions[own],
        )()
        assert alone.tobytes() == out[:, own].tobytes(), node
        assert k.tobytes() == new_k[:, own].tobytes()
        assert v.tobytes() == new_v[:, own].tobytes()


@pytest.mark.parametrize("kind", CACHES)
def test_rotary_attention_has_the_same_bits_on_threads_and_instruction_sets(kind: str) -> None:
    turned = random_turned(kind, rotary=20, normed=True, interleaved=1, rows=33)
    expected = b"".join(a.tobytes() for a in turned.node()())
    for level in library.levels():
        with kernels_of(level):
            assert b"".join(a.tobytes() for a in turned.node(threads=2)()) == expected, level


def test_no_new_rows_give_nothing() -> None:
    scene = random_scene(rows=1)
    empty = {"q": scene.q[:, :, :0], "k_new": scene.k[:, :, :0], "v_new": scene.v[:, :, :0]}
    mask, positions = np.ones((0, 0), np.bool_), scene.positions[:0]
    assert scene.node(**empty, tree_mask=mask, positions=positions)()[0].shape == (1, 4, 0, 40)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": np.zeros((2, 4, 3, 8), np.float32)}, r"\[2, 4, 3, 8\] instead of float32\[1, any, any, any\]"),
        ({"q": np.zeros((1, 3, 3, 8), np.float32)}, "3 query heads cannot share 2 key heads"),
        ({"k_new": np.zeros((1, 2, 4, 8), np.float32)}, "k_new is"),
        ({"v_new": np.zeros((1, 1, 3, 8), np.float32)}, "v_new is"),
        ({"cache_k": np.zeros((2, 26, 9), np.float32)}, "cache_k is"),
        ({"cache_v": np.zeros((2, 25, 8), np.float32)}, "cache_v is"),
        ({"cache_v": np.zeros((2, 26, 8), np.float16)}, "cache_v is float16"),
        ({"cache_k": np.zeros((2, 26, 8), np.int64)}, "neither float32, float16 nor int8|instead of"),
        ({"cache_k": np.zeros((2, 26, 8), np.int8), "cache_v": np.zeros((2, 26, 8), np.int8)}, "k_scales is absent"),
        ({"k_scales": np.zeros((2, 26), np.float32)}, "for a cache that is not int8"),
        ({"past_len": np.array([27])}, "past_len is 27, but the cache has 26 rows"),
        ({"past_len": np.array([-1])}, "past_len is -1"),
        ({"past_len": np.array([1, 2])}, r"past_len is int64\[2\]"),
        ({"tree_mask": np.ones((3, 2), np.bool_)}, "2 columns for 3 new rows"),
        ({"tree_mask": np.ones((3, 24), np.bool_)}, "24 columns for 3 new rows and 20 cache rows"),
        ({"tree_mask": np.ones((2, 3), np.bool_)}, "tree_mask is bool"),
        ({"tree_mask": np.array([-1, 0, 2])}, "names 2 as the parent of column 2"),
        ({"tree_mask": np.array([-1, -2, 0])}, "names -2 as the parent of column 1"),
        ({"tree_mask": np.zeros((3, 3), np.float32)}, "tree_mask is float32"),
        ({"positions": np.zeros(4, np.int64)}, "positions is"),
        ({"sinks": np.zeros(3, np.float32)}, "sinks is"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line_that_names_the_cause(
    changed: dict[str, Array], message: str
) -> None:
    scene = random_scene(rows=3, past=20, size=8)
    with pytest.raises(Exception, match=message) as caught:
        scene.node(**changed)()
    assert "paceline::TreeAttention: " in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": np.zeros((1, 9, 255), np.float32)}, "qkv is"),
        ({"cos": np.zeros((1, 9, 17), np.float32)}, "sin is"),
        ({name: np.zeros((1, 9, 17), np.float32) for name in ("cos", "sin")}, "turns 17 pairs of a head of 32"),
        ({"q_norm": np.zeros(31, np.float32)}, "q_norm is"),
        ({"cache_k": np.zeros((3, 162, 32), np.float32)}, "cache_k is"),
        ({"positions": np.zeros(8, np.int64)}, "positions is"),
    ],
)  # fmt: skip
def test_wrong_inputs_of_rotary_attention_are_refused(changed: dict[str, Array], message: str) -> None:
    with pytest.raises(Exception, match=f"paceline::RotaryTreeAttention: .*{message}"):
        random_turned("float32", rotary=32, normed=True).node(**changed)()


def test_random_masks_and_positions_never_crash() -> None:
    rng = np.random.default_rng(8)
    for seed in range(60):
        rows, past = int(rng.integers(1, 9)), int(rng.integers(0, 140))
        scene = random_scene(CACHES[seed % 3], rows=rows, past=past, size=8, window=seed % 2 * 20, seed=seed)
        width = rows + int(rng.integers(0, past + 1))
        mask = rng.random((rows, width)) < 0.5
        positions = rng.choice([-5, 0, 7, 200, 1 << 62, -(1 << 63)], rows)
        (out,) = scene.node(tree_mask=mask, positions=positions)()
        assert out.shape == scene.q.shape


@pytest.mark.parametrize(
    "attributes", [{"q_heads": 0}, {"q_heads": 1 << 62}, {"kv_heads": -1}, {"kv_heads": 1 << 40}]
)
def test_impossible_numbers_of_heads_are_refused(attributes: dict[str, int]) -> None:
    turned = random_turned("float32", rotary=32, normed=True)
    turned.attributes.update(attributes)
    with pytest.raises(Exception, match=f"attribute {next(iter(attributes))} is .*, not 1 to 65536"):
        turned.node()


def test_a_head_too_large_for_any_model_is_refused() -> None:
    scene = random_scene(rows=3, past=0, size=8)
    empty = {
        "cache_k": np.zeros((2, 0, 1 << 40), np.float32),
        "cache_v": np.zeros((2, 0, 1 << 40), np.float32),
    }
    more = {
        name: np.zeros((1, heads, 0, 1 << 40), np.float32)
        for name, heads in (("q", 4), ("k_new", 2), ("v_new", 2))
    }
    with pytest.raises(Exception, match="of size 1099511627776"):
        scene.node(**empty, **more)()


@pytest.mark.parametrize("form", ["fp16", "int8"])
@pytest.mark.parametrize("size", [8, 12, 40, 64, 128])
def test_the_cache_rounds_a_row_to_the_bits_that_the_kernel_attends_to(form: CacheFormat, size: int) -> None:
    rng = np.random.default_rng(size)
    rows = (rng.normal(size=(1, 2, 33, size)) * 10.0 ** rng.integers(-9, 4, (1, 2, 33, 1))).astype(np.float32)
    rows[0, 0, 0], rows[0, 0, 1] = 0, 1e-31
    rows[0, 0, 2] = np.linspace(-127, 127, size)
    rows[0, 1, 3] = rng.integers(-254, 255, size) / 2
    rows[0, 1, 4, 0] = 1e6
    cache = KeyValueCache(1, 2, 40, size, form)
    cache.write(0, np.concatenate([rows, rows]), slice(None))
    held = cache.stack[:1].astype(np.float32)
    if cache.scales is not None:
        held *= cache.scales[:1, ..., None]
    for level in library.levels():
        with kernels_of(level):
            assert _given_out(form, rows).tobytes() == held[0, :, :33].tobytes(), level


def _given_out(form: CacheFormat, rows: Array) -> Array:
    """New rows of one head, not turned, as the kernel rounds them for its own use."""
    _, heads, count, size = rows.shape
    cache = KeyValueCache(1, heads, 2, size, form)
    flat = rows[0].transpose(1, 0, 2).reshape(1, count, heads * size)
    given = {"qkv": np.concatenate([flat, flat, flat], axis=-1)}
    given |= {name: np.full((1, count, 1), value, np.float32) for name, value in (("cos", 1), ("sin", 0))}
    given |= {"cache_k": cache.stack[0], "cache_v": cache.stack[1], "past_len": np.zeros(1, np.int64)}
    given |= {"tree_mask": np.tri(count, dtype=np.bool_), "positions": np.arange(count)}
    if cache.scales is not None:
        given |= {"k_scales": cache.scales[0], "v_scales": cache.scales[1]}
    order = tuple(name if name in given else "" for name in contract.ROTARY_INPUTS)
    fixed = {"scale": 1.0, "window": 0, "softcap": 0.0, "q_heads": heads, "kv_heads": heads}
    node = OneNode("RotaryTreeAttention", order, {}, given, outputs=3, **fixed, epsilon=1e-6, interleaved=0)
    new_k: Array = node()[1]
    return new_k

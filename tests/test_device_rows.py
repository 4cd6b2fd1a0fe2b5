"""A cache that stays on its device holds what one in this process holds, and no pass and no commit copies it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from family_models import VOCAB
from plugin_packages import lack_of
from static_parts import StaticPart, make_part

from paceline.memory.buckets import BucketCache
from paceline.memory.cache import KeyValueCache
from paceline.runtime.model.device_rows import DeviceRows, NewRows
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound
from paceline.runtime.tree import TokenTree

pytestmark = pytest.mark.export

PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 40)]
TREE = TokenTree.picked([5, 6, 7, 8], [-1, 0, 0, 1], ("root", "a", "a", "a"))
WIDE = TokenTree.picked(list(range(5, 16)), [-1, 0, 0, 1, 2, 3, 3, 5, 1, 7, 9], ("root", *["a"] * 10))
"""More nodes than any graph has rows: it goes in several runs."""

BELOW = np.array([[True, False, True, False], [False, True, False, True]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StaticPart:
    return make_part("llama", tmp_path_factory.mktemp("static"))


@pytest.fixture(params=["careful", "webgpu"])
def device(request: pytest.FixtureRequest, careful: str) -> str:
    """A device whose cache stays there."""
    if request.param == "webgpu" and (lack := lack_of("webgpu")):
        pytest.skip(lack)
    return str(request.param)


def rows_of(model: Model) -> np.ndarray:
    """The committed rows of a cache, wherever it lies."""
    held = model.cache.held if isinstance(model.cache, BucketCache) else model.cache
    if isinstance(held, DeviceRows):
        return np.stack([plane.read() for plane in held.read().planes])[:, :, : model.length]
    assert isinstance(held, KeyValueCache)
    return held.read()[:, :, : model.length]


def test_prompts_trees_levels_and_a_text_begun_anew_leave_the_same_rows(
    made: StaticPart, device: str
) -> None:
    """The text crosses from the first size of the cache to the second; commits take chains and branches."""
    here, there = made.static(60, 20), made.static(60, 20, device=device)
    both = (here, there)

    def alike(act: Callable[[Model], object]) -> None:
        said = [np.array(act(model)) for model in both]
        np.testing.assert_allclose(*said, atol=1e-4)
        np.testing.assert_allclose(*map(rows_of, both), atol=1e-4)

    for _ in range(2):
        for model in both:
            model.rewind(0)
        alike(lambda model: model.extend(PROMPT[:9]))
        for tree, path in (
            (TREE, (0, 1, 3)),
            (TREE, (0, 2)),
            (TREE, (0,)),
            (WIDE, (0, 2, 4)),
            (WIDE, (0, 1)),
        ):
            alike(lambda model, tree=tree: model.score(tree).logits.copy())
            alike(lambda model, path=path: model.commit(path) or [])
        alike(lambda model: model.extend(PROMPT[9:22]))
        alike(lambda model: model.grow([4, 9], [model.length] * 2, np.eye(2, dtype=np.bool_), 0).copy())
        alike(lambda model: model.grow([2, 3], [model.length + 1] * 2, BELOW, 2).copy())
        alike(lambda model: model.adopt([1, 3], [9, 3]) or [])
        alike(lambda model: model.extend([1]))
        alike(lambda model: model.rewind(model.length - 3) or [])
        alike(lambda model: model.ahead([7], [8, 9]).copy())
    cache = there.cache
    assert isinstance(cache, BucketCache)
    assert isinstance(cache.held, DeviceRows)
    assert cache.rows == 192
    assert cache.bytes == 192 * made.part.layers * 2 * made.part.kv_heads * made.part.head_dim * 4


def test_only_tokens_places_masks_and_logits_cross(
    made: StaticPart, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache in this process every pass copies all of it there: the negative control."""
    crossed: dict[bool, set[str]] = {True: set(), False: set()}
    real = Bound.__init__

    def init(self: Bound, graph: Graph, inputs: dict, outputs: dict) -> None:  # type: ignore[type-arg]
        given = {**inputs, **outputs}
        held = any(isinstance(value, np.ndarray) for name, value in given.items() if "cache" in name)
        crossed[held] |= {name for name, value in given.items() if isinstance(value, np.ndarray)}
        real(self, graph, inputs, outputs)

    monkeypatch.setattr(Bound, "__init__", init)
    for word in (device, "cpu"):
        model = made.static(60, 20, device=word)
        model.prefill(PROMPT)
        model.score(TREE)
        model.commit((0, 1, 3))
    alone = {"token_ids", "positions", "rows", "bias", "logits"}
    assert crossed[False] == alone
    assert crossed[True] > alone | {"cache_k.0", "cache_v.0", "new_k.0", "new_v.0"}


def test_a_commit_takes_as_long_whatever_the_capacity(made: StaticPart, device: str) -> None:
    """Copying a cache of 134 MB takes 8 ms or more, moving two rows 0.3 on a device of software."""
    part = made.part
    graph = made.opened(part.beside("static.1x24.onnx"), device)
    took = list[float]()
    for capacity in (64, 2**19):
        cache = DeviceRows(graph, part, capacity, "fp32")
        new, mark = cache.fresh(4), graph.kept((1,), np.float32)
        cache.write(0, new, slice(None))
        seconds = list[float]()
        for at in range(15):
            begun = time.perf_counter()
            cache.write(at, new, [0, 2])
            mark.read()  # until all of it is done
            seconds.append(time.perf_counter() - begun)
        took.append(min(seconds))
    assert took[1] < 3 * took[0] + 5e-4


def test_rows_beyond_the_capacity_are_refused_and_none_are_no_rows(made: StaticPart, device: str) -> None:
    graph = made.opened(made.part.beside("static.1x24.onnx"), device)
    cache = DeviceRows(graph, made.part, 24, "fp32")
    new = cache.fresh(4)
    with pytest.raises(ValueError, match="cache row 25 is beyond the capacity of 24"):
        cache.write(22, new, [0, 1, 3])
    cache.write(24, new, [])
    cache.write(24, np.zeros(new.shape, np.float32), [])


def test_rows_of_16_bits_are_rounded_as_in_this_process(made: StaticPart, device: str) -> None:
    part = made.part
    graph = made.opened(part.beside("static.1x24.onnx"), device)
    cache = DeviceRows(graph, part, 24, "fp16")
    here = KeyValueCache(part.layers, part.kv_heads, 24, part.head_dim, "fp16")
    new = np.random.default_rng(0).standard_normal((2 * part.layers, part.kv_heads, 5, part.head_dim))
    new = new.astype(np.float32)
    new[0, 0, 2, 0] = 1e6
    for held in (cache, here):
        held.write(3, new, [0, 2, 3])
        held.write(20, new, slice(4))
        held.gather(3, [3, 5])
    found = np.stack([plane.read() for plane in cache.read().planes])
    np.testing.assert_array_equal(found, here.stack)
    assert isinstance(cache.read(), NewRows)
    assert cache.bytes == here.bytes

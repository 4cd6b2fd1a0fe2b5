"""Caches with a tree of new rows behind them, and the attention operators around them, for tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from one_node import Array, OneNode

from paceline.runtime.ops import tree_attention as contract

TAIL = ("cache_k", "cache_v", "past_len", "tree_mask", "positions", "sinks", "k_scales", "v_scales")
CACHES = ("float32", "float16", "int8")


def as_codes(rows: Array) -> tuple[Array, Array]:
    """int8 codes `[.., D]` and their scales `[..]`, as the contract of the int8 cache says."""
    amax = np.abs(rows).max(axis=-1)
    codes = np.rint(rows * (np.float32(127) / amax)[..., None]).astype(np.int8)
    return codes, (amax / np.float32(127)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scene:
    """A cache of float32 rows, of which `past` count, and new rows that form a tree."""

    kind: str
    past: int
    parents: tuple[int, ...]
    q: Array
    k: Array
    v: Array
    cache_k: Array
    cache_v: Array
    sinks: Array | None
    attributes: dict[str, Any]

    @property
    def mask(self) -> Array:
        """bool[T, T]."""
        mask = np.eye(len(self.parents), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    @property
    def positions(self) -> Array:
        """Depth behind the cache."""
        return (self.past + self.mask.sum(axis=1) - 1).astype(np.int64)

    def path(self, node: int) -> list[int]:
        """From the root to the node."""
        return [int(i) for i in np.flatnonzero(self.mask[node])]

    def cached(self) -> dict[str, Array]:
        """The cache as its type holds it."""
        if self.kind != "int8":
            return {"cache_k": self.cache_k.astype(self.kind), "cache_v": self.cache_v.astype(self.kind)}
        (k, k_scales), (v, v_scales) = as_codes(self.cache_k), as_codes(self.cache_v)
        return {"cache_k": k, "cache_v": v, "k_scales": k_scales, "v_scales": v_scales}

    def inputs(self, *, as_parents: bool = False) -> dict[str, Array]:
        """Everything that TreeAttention reads."""
        given = {"q": self.q, "k_new": self.k, "v_new": self.v, **self.cached()}
        given["past_len"] = np.array([self.past], np.int64)
        given["tree_mask"] = np.array(self.parents, np.int64) if as_parents else self.mask
        given["positions"] = self.positions
        return given if self.sinks is None else given | {"sinks": self.sinks}

    def node(self, *, threads: int = 1, **changed: Array) -> OneNode:
        given = self.inputs() | changed
        order = tuple(name if name in given else "" for name in ("q", "k_new", "v_new", *TAIL))
        return OneNode("TreeAttention", order, {}, given, threads=threads, **self.attributes)

    def reference(self) -> Array:
        """In float64, from rows rounded as the cache rounds."""

        def rounded(rows: Array) -> Array:
            if self.kind == "int8":
                codes, scales = as_codes(rows)
                return codes * scales[..., None]
            return rows.astype(self.kind).astype(np.float32)

        k, v = (rounded(a) for a in (self.k, self.v))
        cache_k, cache_v = (rounded(a) for a in (self.cache_k, self.cache_v))
        if self.sinks is None:
            past = np.array([self.past], np.int64)
            return contract.reference(
                self.q, k, v, cache_k, cache_v, past, self.mask, self.positions, **self.attributes
            )
        return self._with_sinks(k, v, cache_k, cache_v)

    def _with_sinks(self, k: Array, v: Array, cache_k: Array, cache_v: Array) -> Array:
        assert self.sinks is not None
        groups = self.q.shape[1] // k.shape[1]
        keys = np.repeat(np.concatenate([cache_k[:, : self.past], k[0]], axis=1), groups, axis=0)
        values = np.repeat(np.concatenate([cache_v[:, : self.past], v[0]], axis=1), groups, axis=0)
        scores = np.einsum("htd,hpd->htp", self.q[0], keys, dtype=np.float64) * self.attributes["scale"]
        seen = contract.visible(self.past, self.mask, self.positions, self.attributes["window"])
        scores = np.where(seen, scores, -np.inf)
        sinks = np.broadcast_to(self.sinks[:, None, None], (*scores.shape[:2], 1))
        weights = np.exp(np.concatenate([scores, sinks], axis=-1))
        weights /= weights.sum(axis=-1, keepdims=True)
        out: Array = np.einsum("htp,hpd->htd", weights[..., :-1], values)
        return out[None]

    def alone(self, node: int, *, waiting: bool) -> Array:
        """The node as the only new row, its ancestors in the cache: committed, or waiting in the mask."""
        *before, last = self.path(node)
        cache_k, cache_v = self.cache_k.copy(), self.cache_v.copy()
        for at, ancestor in enumerate(before, self.past):
            cache_k[:, at], cache_v[:, at] = self.k[0, :, ancestor], self.v[0, :, ancestor]
        one = replace(
            self,
            past=self.past + len(before),
            parents=(-1,),
            q=self.q[:, :, last : last + 1],
            k=self.k[:, :, last : last + 1],
            v=self.v[:, :, last : last + 1],
            cache_k=cache_k,
            cache_v=cache_v,
        )
        mask = np.ones((1, len(before) + 1 if waiting else 1), np.bool_)
        out: Array = one.node(tree_mask=mask)()[0]
        return out


def random_scene(
    kind: str = "float32",
    *,
    rows: int = 12,
    past: int = 150,
    heads: tuple[int, int] = (4, 2),
    size: int = 40,
    sinks: bool = False,
    seed: int = 0,
    **attributes: Any,
) -> Scene:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    parents = (-1, *(int(rng.integers(max(0, i - 5), i)) for i in range(1, rows)))
    room = past + rows + 3
    return Scene(
        kind, past, parents,
        drawn(1, heads[0], rows, size), drawn(1, heads[1], rows, size), drawn(1, heads[1], rows, size),
        drawn(heads[1], room, size), drawn(heads[1], room, size),
        drawn(heads[0]) if sinks else None,
        {"scale": size**-0.5, "window": 0, "softcap": 0.0} | attributes,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turned:
    """What RotaryTreeAttention reads in front of the scene's cache and tree."""

    scene: Scene
    given: dict[str, Array]
    attributes: dict[str, Any]

    def node(self, *, threads: int = 1, **changed: Array) -> OneNode:
        given = self.given | changed
        order = ("qkv", "cos", "sin", "q_norm", "k_norm", *TAIL)
        names = tuple(name if name in given else "" for name in order)
        return OneNode("RotaryTreeAttention", names, {}, given, outputs=3, threads=threads, **self.attributes)


def random_turned(kind: str, *, rotary: int, normed: bool, interleaved: int = 0, rows: int = 9) -> Turned:
    scene = random_scene(kind, rows=rows, size=32, window=60)
    rng = np.random.default_rng(4)
    angles = rng.uniform(0, 6, (1, rows, rotary // 2))
    given = {"qkv": rng.normal(size=(1, rows, 8 * 32)).astype(np.float32)}
    given |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if normed:
        given |= {name: rng.uniform(0.5, 1.5, 32).astype(np.float32) for name in ("q_norm", "k_norm")}
    given |= {name: a for name, a in scene.inputs().items() if name in TAIL}
    more = {"q_heads": 4, "kv_heads": 2, "epsilon": 1e-6, "interleaved": interleaved}
    return Turned(scene, given, scene.attributes | more)


def turn(heads: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """heads `[H, T, D]`, cos and sin `[T, R / 2]`."""
    half = cos.shape[-1]
    out: Array = heads.copy()
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = heads[..., first], heads[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out

"""A cache for graphs that read a fixed number of rows: it moves to the next size when a text outgrows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from paceline.memory.cache import CacheFormat, RowCache
from paceline.memory.errors import ArgumentError


class MovableCache(RowCache, Protocol):
    """A cache whose rows another one can take over."""

    def read(self) -> Any:
        """All of its rows, [2 * layers, kv_heads, capacity, head_dim], as another one takes them; not a copy."""


def reachable(contexts: Sequence[int], rows: int) -> tuple[int, ...]:
    """The sizes, ascending, of a cache that is to hold so many rows at last. Raises ArgumentError beyond the last."""
    for place, size in enumerate(contexts):
        if size >= rows:
            return tuple(contexts[: place + 1])
    raise ArgumentError(
        f"the static graphs hold {contexts[-1]} rows, and the context and drafts that were asked for take {rows}: "
        "lower --context, --max-nodes or --draft-depth"
    )


class BucketCache:
    """Keys and values of as many rows as the graphs of one bucket read.

    sizes: of the buckets, ascending. made: a cache of so many rows. whole: begin with the last size, and never move.
    form: of those caches. What graphs are bound to, `inputs`, changes when `rows` does.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        made: Callable[[int], MovableCache],
        whole: bool = False,
        form: CacheFormat = "fp32",
    ) -> None:
        self.form = form
        self._sizes, self._made = tuple(sizes), made
        self.capacity = self._sizes[-1]
        self._least = self.capacity if whole else self._sizes[0]
        self.held = made(self._least)
        """The rows of now."""

    @property
    def rows(self) -> int:
        """Rows that the graphs of now read, whatever they hold."""
        return self.held.capacity

    @property
    def bytes(self) -> int:
        """Bytes that are reserved now."""
        return self.held.bytes

    def inputs(self) -> Mapping[str, Any]:
        """Keys and values by the names of the graph contract."""
        return self.held.inputs()

    def reach(self, rows: int) -> None:
        """Move to a bucket that holds so many rows. Raises ValueError beyond the last one."""
        if rows <= self.rows:
            return
        old, size = self.held, next((size for size in self._sizes if size >= rows), None)
        if size is None:
            raise ValueError(f"cache row {rows} is beyond the capacity of {self.capacity}")
        self.held = self._made(size)
        self.held.write(0, old.read(), slice(None))
        old.release()

    def write(self, at: int, new: Any, rows: Sequence[int] | slice) -> None:
        """Write the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] from row `at` on."""
        count = len(range(*rows.indices(new.shape[2]))) if isinstance(rows, slice) else len(rows)
        self.reach(at + count)
        self.held.write(at, new, rows)

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""
        self.held.gather(at, rows)

    def touch(self) -> None:
        """Make all of it resident now; what the cache holds stays."""
        self.held.touch()

    def release(self) -> None:
        """Give the memory back; every row is lost."""
        if self.rows == self._least:
            self.held.release()
        else:
            self.held = self._made(self._least)

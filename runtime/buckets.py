"""The sizes of static graphs, and what these are called."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

SPARE = 128
"""Rows that the largest static graphs read beyond the context: for drafts that are not committed."""


STATIC_DATA = "static.onnx.data"
"""The file of the weights that static graphs alone read."""


class Buckets(Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes that a part has static graphs for; all lists ascend.

    `static.TxS.onnx` takes T new rows, one of `rows`, over S rows of the cache, one of `contexts`, and gives logits of
    all T; `prompt.TxS.onnx` takes `prompt` rows and gives those of one. windows: of the layers, 0 where there is none;
    a graph takes a bias for each. type: of cache, biases and new rows. weights: bytes of what they read, some of it in
    `static.onnx.data`; None where they read the part's own weights alone.
    """

    rows: Annotated[list[Annotated[int, Meta(ge=1, le=256)]], Meta(min_length=1, max_length=16)]
    prompt: Annotated[int, Meta(ge=2, le=1024)]
    contexts: Annotated[list[Annotated[int, Meta(ge=1, le=2**24)]], Meta(min_length=1, max_length=16)]
    windows: Annotated[list[Annotated[int, Meta(ge=0, le=2**24)]], Meta(min_length=1, max_length=16)]
    type: Literal["fp32", "fp16"] = "fp32"
    weights: Annotated[int, Meta(ge=0, le=2**50)] | None = None

    def wrong(self) -> str:
        """What is wrong with them; empty where nothing is."""
        for name, numbers in (("rows", self.rows), ("contexts", self.contexts), ("windows", self.windows)):
            if numbers != sorted({*numbers}):
                return f"has static graphs whose {name} do not ascend"
        if self.prompt <= self.rows[-1] or self.contexts[-1] < SPARE + 2:
            return "has static graphs that are too small for its prompts or its context"
        return ""

    def names(self) -> list[str]:
        """The files of all of its graphs."""
        return [name for context in self.contexts for name in self.names_over(context)]

    def names_over(self, context: int) -> list[str]:
        """Of those that read so many rows of the cache, the one for prompts last."""
        alone = [static_name(rows, context, prompt=False) for rows in self.rows]
        return [*alone, static_name(self.prompt, context, prompt=True)]


def static_name(rows: int, context: int, prompt: bool) -> str:
    """The file of a static graph for so many new rows over so many of the cache."""
    return f"{'prompt' if prompt else 'static'}.{rows}x{context}.onnx"

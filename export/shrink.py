"""How the weights of one part are stored, by the order and by what they come from; and storing them so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from paceline.export.check import check_matrix
from paceline.export.gguf.blocks import Blocks
from paceline.export.gguf.unpack import Unpacked
from paceline.export.mixing import Choose
from paceline.export.order import Order
from paceline.export.pack import Packed
from paceline.export.passes import Floats
from paceline.export.quantize import BLOCKS, Quantised
from paceline.export.storage import Profile, Quant, Storage, store
from paceline.export.stored import StoredWeights


class Source(Protocol):
    """What a model comes from, with torch or without."""

    @property
    def dtype(self) -> str:
        """The checkpoint's own: float16, bfloat16 or float32."""

    @property
    def gguf(self) -> Unpacked | None:
        """The GGUF file that it comes from."""


def quant_of(order: Order, loaded: Source) -> Quant:
    """What the order says, else the blocks of a GGUF file as they are, else nothing."""
    if order.quant is not None and not (order.quant == "keep" and loaded.gguf is None):
        return order.quant
    return "none" if loaded.gguf is None else "keep"


def profile_of(order: Order) -> Profile:
    """Which operators multiply."""
    return "cpu" if order.packed else "portable"


def mixed(order: Order) -> bool:
    """Whether a recipe gives each matrix a format of its own."""
    if order.quant != "int4" or not order.packed or order.block is not None:
        return False
    return order.bits is not None or order.calibrate is None


def keeps_inputs(order: Order) -> bool:
    """Whether some products of 8 bits take their inputs unrounded."""
    return order.quant == "int8" and order.packed and order.block in (None, 32)


def block_of(order: Order) -> int | None:
    """Rows of a column that share a scale; None without quantisation, for one scale per column and for a recipe."""
    if order.quant not in BLOCKS or order.block == "channel" or mixed(order):
        return None
    return order.block or BLOCKS[order.quant]


def in_floats(graph: ir.Model, loaded: Source) -> ir.Model:
    """A simplified graph by stock operators, over the weights as they are; the graph itself changes."""
    store(graph, loaded.dtype, Storage(profile="portable"), lambda *_: None)
    return graph


def shrink(
    name: str,
    graph: ir.Model,
    loaded: Source,
    order: Order,
    parameters: int,
    done: Callable[[float], None],
    *,
    gridded: bool = False,
    choose: Choose | None = None,
    stored: StoredWeights | None = None,
) -> tuple[float, tuple[str, ...]]:
    """Quantise, pack and narrow; `done` is told what share of all `parameters` is quantised.

    gridded: calibration left the weights on a grid. choose: how each matrix is rounded, None as the order says. stored:
    takes note of the codes. Gives the worst relative error, and what is to be said of the weights.
    """
    count = 0

    def made(weight: str, values: Floats, quantised: Quantised, packed: Packed | None) -> None:
        nonlocal count
        check_matrix(f"{name}: {weight}", values, quantised, packed)
        count += values.size
        done(min(1.0, count / parameters))

    quant = quant_of(order, loaded)
    blocks = Blocks(loaded.gguf.weights.file) if quant == "keep" and loaded.gguf is not None else None
    storage = Storage(quant, block_of(order), profile_of(order), gridded=gridded)
    chosen = choose if blocks is None else blocks.choose
    errors = store(graph, loaded.dtype, storage, made, chosen, stored)
    notes = [] if blocks is None else blocks.notes
    if loaded.gguf is not None and quant in BLOCKS:
        kinds = sorted({stored.kind for stored in loaded.gguf.weights.file.tensors.values()} - {"F32"})
        said = ", ".join(kinds)
        notes = [f"its weights came in {said} and were rounded again: without --quant they stay as they are"]
    return max(errors.values(), default=0.0), tuple(notes)

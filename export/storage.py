"""The form in which a bundle stores a graph: which operators multiply, how many bits, what is fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from paceline.export.functions import append_functions, weights_of
from paceline.export.fuse import fuse_products
from paceline.export.fuse_attention import fuse_attention
from paceline.export.mixing import Choose, drop_cuts
from paceline.export.names import plain_names
from paceline.export.narrow import narrow
from paceline.export.portable import make_portable
from paceline.export.products import Made, as_floats, rounding, store_matmuls
from paceline.export.quantize import BITS
from paceline.export.stored import StoredWeights
from paceline.runtime.ops import packed_matmul as contract

Quant = Literal["none", "int8", "int4", "keep"]
LOSSLESS = ("none", "keep")
"""Change no value."""
Profile = Literal["cpu", "portable"]


@dataclass(frozen=True, slots=True)
class Storage:
    """quant: how matrices are stored; "keep" leaves it to `choose`.

    block: rows of a column that share a scale, None for all of them. profile: "cpu" has packed operators, "portable"
    those of stock ONNX Runtime. gridded: the matrices are codes times scales already, as calibration leaves them.
    """

    quant: Quant = "none"
    block: int | None = None
    profile: Profile = "cpu"
    gridded: bool = False


def store(
    graph: ir.Model,
    dtype: str,
    storage: Storage,
    made: Made,
    choose: Choose | None = None,
    stored: StoredWeights | None = None,
) -> dict[str, float]:
    """Bring a simplified graph into its stored form; the relative error of each quantised matrix by name.

    dtype is the checkpoint's. `made` sees every quantised matrix before its float32 form is dropped. `choose` says how
    each matrix is stored, and each table that rows are read from, by its transpose; None rounds all matrices as
    `storage` says, and no table. `stored` takes note of what was chosen.
    """
    packed = storage.profile == "cpu"
    chosen = choose or _choice(storage)
    if stored is not None:
        chosen = stored.seen(chosen)
    table = None if choose is None else chosen
    errors = store_matmuls(graph, dtype, chosen, made, packed=packed, table=table)
    narrow(graph, dtype, lossless=storage.quant in LOSSLESS)
    if packed:
        fuse_products(graph)
        fuse_attention(graph)
    else:
        make_portable(graph)
    drop_cuts(graph.graph)
    plain_names(graph)
    append_functions(graph)
    return errors


def _choice(storage: Storage) -> Choose:
    if storage.quant in LOSSLESS:
        return as_floats
    return rounding(BITS[storage.quant], storage.block, gridded=storage.gridded)


def layout_of(graph: ir.Graph) -> int | None:
    """The lowest version of the packed layout that has every weight of a stored graph; None where none is packed."""
    packed = [weights_of(node) for node in graph if node.op_type in (*contract.PRODUCTS, contract.EMBEDDING)]
    return max((contract.layout_of(*weights) for weights in packed), default=None)

"""A twin of a finished graph that does not round activations: it must compute what torch does with the same weights."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from paceline.export.functions import append_functions
from paceline.export.nbits import FULL
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.ops import packed_matmul


def write_exact_graph(graph: ir.Model, file: Path) -> str:
    """Write the twin beside `file`, the finished graph whose weights it reads, and return its name."""
    name = f"{file.stem}.exact{file.suffix}"
    write_atomically(file.parent / name, ir.to_proto(exactly(graph)).SerializeToString(), private=False)
    return name


def exactly(graph: ir.Model) -> ir.Model:
    """The twin of a finished graph, by its function bodies and by the kernels alike."""
    model = graph.clone()
    for node in model.graph:
        if node.op_type in packed_matmul.PRODUCTS and node.domain == packed_matmul.DOMAIN:
            node.attributes["activation_bits"] = ir.AttrInt64("activation_bits", 32)
        elif node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", FULL)
    append_functions(model)
    return model

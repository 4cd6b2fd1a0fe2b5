"""Whether what a static graph computes stays within what 16 bits hold: on the CPU, which computes more exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.static.graph import Sizes
from paceline.export.static.writing import StaticForms
from paceline.runtime.model.ort import onnxruntime
from paceline.runtime.model.static import HIDDEN

_FILE = "range.onnx"


def check_range(name: str, forms: StaticForms, folder: Path, prompt: Sequence[int]) -> None:
    """Run a prompt through a static graph in 16 bits that gives everything it computes.

    Raises ExportError that names the first value that is infinite or no number.
    """
    rows = len(prompt)
    model = forms.made(Sizes(rows, rows, 1))
    between = [out for node in model.graph for out in node.outputs if out.dtype == ir.DataType.FLOAT16]
    model.graph.outputs.extend(value for value in between if not value.is_graph_output())
    path = folder / _FILE
    try:
        path.write_bytes(ir.to_proto(model).SerializeToString())
        found = _run(path, _inputs(model, np.array(prompt, np.int32)))
    finally:
        path.unlink(missing_ok=True)
    wrong = {
        value.name
        for value, array in zip(model.graph.outputs, found, strict=True)
        if not np.isfinite(array).all()
    }
    for node in model.graph:
        if wrong.intersection(out.name for out in node.outputs):
            raise ExportError(
                f"{name}: 16 bits do not hold what it computes ({node.op_type} {node.outputs[0].name}): "
                "use --static-type fp32"
            )


def _inputs(model: ir.Model, prompt: np.ndarray) -> dict[str, Any]:
    """Those of a chain behind an empty cache."""
    rows = len(prompt)
    bias = np.full((rows, 1 + rows), HIDDEN, np.float16)
    bias[:, 1:][np.tri(rows, dtype=np.bool_)] = 0
    known = {"token_ids": prompt, "positions": np.arange(rows, dtype=np.int32)}
    known["rows"] = known["positions"]
    given: dict[str, Any] = {}
    for value in model.graph.inputs:
        title = str(value.name)
        if title.startswith("bias"):
            given[title] = bias
        else:
            shape = () if value.shape is None else value.shape.numpy()
            given[title] = known[title] if title in known else np.zeros(shape, np.float16)
    return given


def _run(path: Path, given: dict[str, Any]) -> list[np.ndarray]:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    found: list[np.ndarray] = session.run(None, given)
    return found

"""Writes a graph of one node whose constants stand in a `.data` file beside it, as the exporter's do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from paceline.runtime.manifest import Weight

Array = np.ndarray[Any, Any]


def write_graph(
    path: Path, node: onnx.NodeProto, fed: Mapping[str, int], constants: Mapping[str, Array]
) -> dict[str, Weight]:
    """One output of float32; `fed` are the other inputs with their element types. Returns where the constants are."""
    listed: dict[str, Weight] = {}
    tensors, data = [], b""
    for name, array in constants.items():
        data += bytes(-len(data) % 4096)
        listed[name] = Weight(array.dtype.name, list(array.shape), len(data))  # type: ignore[arg-type]
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": f"{path.name}.data", "offset": len(data), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        data += array.tobytes()
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in fed.items()],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
        tensors,
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("paceline", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    path.with_name(f"{path.name}.data").write_bytes(data)
    return listed

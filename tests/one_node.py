"""A session of ONNX Runtime around one node of ours, run by the native library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from paceline.runtime.ops import library

Array = np.ndarray[Any, Any]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint16": TensorProto.BFLOAT16,  # numpy has no bfloat16: its bits
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class OneNode:
    """A node whose inputs are `order` ("" = absent): `constants` live in the graph, the others are fed."""

    def __init__(
        self,
        op: str,
        order: tuple[str, ...],
        constants: Mapping[str, Array],
        fed: Mapping[str, Array],
        *,
        outputs: int = 1,
        threads: int = 1,
        **attributes: object,
    ) -> None:
        self._fed = dict(fed)
        names = [f"y{i}" for i in range(outputs)]
        node = helper.make_node(op, list(order), names, name="it", domain="paceline", **attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(name, _TYPES[a.dtype.name], None) for name, a in fed.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            [
                helper.make_tensor(name, _TYPES[a.dtype.name], a.shape, a.tobytes(), raw=True)
                for name, a in constants.items()
            ],
        )
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("paceline", 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        library.register(options)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, **changed: Array) -> list[Array]:
        """Run with what was fed at the start, or with other values of the same types."""
        results: list[Array] = self._session.run(None, {**self._fed, **changed})
        return results


@contextmanager
def kernels_of(level: str) -> Iterator[None]:
    """Another instruction set for a while."""
    before = library.level()
    assert before is not None
    library.use(level)
    try:
        yield
    finally:
        library.use(before)

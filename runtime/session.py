"""One ONNX graph opened for running, with numpy arrays bound to it once per shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.device import Device, onnxruntime
from paceline.runtime.manifest import BundleError

Array = npt.NDArray[Any]


class Graph:
    """An ONNX Runtime session on one device.

    Two sessions in one process must not spin against each other: every pool stops spinning when its run ends.
    """

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers: list[Any] = [(device.provider, _provider_options(device))]
        if device.name != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                raise BundleError(
                    f"ONNX Runtime cannot load {path} on {device.name}: {_first_line(error)}; export the model again"
                ) from None
            raise
        self._ort = ort
        self._on_cpu = device.name == "cpu"
        self.device = device
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    @property
    def provider(self) -> str:
        """The execution provider that really runs it."""
        return str(self._session.get_providers()[0])

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound:
        """Bind contiguous arrays for good: fill the inputs, run, read the outputs. Shapes must be exact."""
        for name, array in (*inputs.items(), *outputs.items()):
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} is not contiguous: ONNX Runtime would silently copy it")
        return Bound(self._ort, self._session, inputs, outputs, self._on_cpu)


class Bound:
    """A graph with its arrays. On the CPU nothing is copied; other devices are fed and read at each run."""

    def __init__(
        self, ort: Any, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array], aliased: bool
    ) -> None:
        self._session, self._inputs, self._outputs = session, inputs, outputs
        self._binding = None
        if aliased:
            self._binding = session.io_binding()
            self._kept = [ort.OrtValue.ortvalue_from_numpy(a) for a in (*inputs.values(), *outputs.values())]
            for name, value in zip(inputs, self._kept, strict=False):
                self._binding.bind_ortvalue_input(name, value)
            for name, value in zip(outputs, self._kept[len(inputs) :], strict=True):
                self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """One pass over the bound arrays."""
        if self._binding is not None:
            self._session.run_with_iobinding(self._binding)
            return
        results = self._session.run(list(self._outputs), dict(self._inputs))
        for array, result in zip(self._outputs.values(), results, strict=True):
            np.copyto(array, result)


def _provider_options(device: Device) -> dict[str, str]:
    if device.provider in ("CUDAExecutionProvider", "DmlExecutionProvider"):
        return {"device_id": str(device.number)}
    return {}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]

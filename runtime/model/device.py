"""Which devices ONNX Runtime can use here, and how a device name is understood."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import Error
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import Part
from paceline.runtime.ops import library


class DeviceError(Error):
    """A device that cannot be used; the message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the user names it (`cuda:0`), the provider that runs it, and the provider's options."""

    name: str
    provider: str
    kind: str
    detail: str = ""
    number: int = 0


_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "CPU"),
    "cuda": ("CUDAExecutionProvider", "GPU"),
    "directml": ("DmlExecutionProvider", "GPU"),
    "openvino": ("OpenVINOExecutionProvider", "CPU/GPU/NPU"),
    "qnn": ("QNNExecutionProvider", "NPU"),
}
_EXTRA = {"cpu": "cpu", "cuda": "cuda", "directml": "directml", "openvino": "openvino", "qnn": "qnn"}


def onnxruntime() -> Any:
    """The onnxruntime module. Raises DeviceError that names the extra where there is none.

    KeyboardInterrupt passes, although its C++ part turns that into an ImportError.
    """
    # Its wheels can collect and send usage data: a program that runs models at home must not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise DeviceError(
            f"ONNX Runtime cannot be imported ({error}): install one with pip install 'paceline[cpu]' "
            "(or [cuda], [qnn], [openvino], [directml] for an accelerator)"
        ) from None
    ort.set_default_logger_severity(4)
    return ort


def list_devices() -> list[Device]:
    """Every device that the installed ONNX Runtime offers, the CPU first."""
    offered = onnxruntime().get_available_providers()
    found = []
    for name, (provider, kind) in _PROVIDERS.items():
        if provider in offered:
            detail = (
                f"{os.cpu_count()} logical cores"
                if name == "cpu"
                else "offered by the installed ONNX Runtime"
            )
            found.append(Device(name, provider, kind, detail))
    return found


def find_device(name: str) -> Device:
    """Understand `cpu`, `cuda`, `cuda:1`, ... Raises DeviceError where it cannot run."""
    base, _, number = name.partition(":")
    if base not in _PROVIDERS or (number and not (number.isascii() and number.isdecimal())):
        raise DeviceError(
            f"unknown device {name!r}: use one of {', '.join(_PROVIDERS)} (with :N for the Nth)"
        )
    provider, kind = _PROVIDERS[base]
    if provider not in onnxruntime().get_available_providers():
        raise DeviceError(
            f"device {name!r} needs an ONNX Runtime with {provider}: pip install 'paceline[{_EXTRA[base]}]' "
            "in an environment without another onnxruntime"
        )
    if base == "cpu" and number.strip("0"):
        raise DeviceError(f"there is no device {name!r}: the processor is one device, 'cpu'")
    return Device(name, provider, kind, number=int(number or 0))


def runtime_version() -> str:
    """Version of the installed ONNX Runtime package, whichever name it goes by."""
    version: str = onnxruntime().__version__
    for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return f"onnxruntime {version}"


def system() -> str:
    """System, release and machine. `platform.platform()` would start a program of the search path to know more."""
    known = platform.uname()
    return f"{known.system} {known.release} {known.machine}"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The project's own CPU kernels: what runs in words, the instruction set, and those that could be used."""

    in_use: str
    level: str | None
    levels: tuple[str, ...]


def kernels() -> Kernels:
    """Which kernels sessions on the CPU get. Raises ValueError if PACELINE_KERNELS names unknown ones."""
    return Kernels(library.kernels_in_use(), library.level(), library.levels())


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement of a part holds for: its costs, and what it takes besides weights and buffers."""

    bundle: Bundle
    part: Part
    device: str
    threads: int
    cache: CacheFormat

    def text(self) -> str:
        """A digest that changes with the files, the device and the versions of what runs them."""
        files, part = self.bundle.manifest.files, self.part
        cache = self.cache if part.has_form(self.cache) else "fp32"
        parts = (
            *(files[graph].sha256 for graph in part.graphs_for(cache)),
            files[part.data].sha256 if part.data in files else "",
            self.device,
            str(self.threads),
            self.cache,
            metadata.version("paceline"),
            kernels().in_use,
            runtime_version(),
            system(),
        )
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]

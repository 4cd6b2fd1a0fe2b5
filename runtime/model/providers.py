"""Which execution provider a device word stands for, where it comes from, and what it has to be told.

What each does with our graphs was measured: docs/devices.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from paceline.runtime.model.ort import DeviceError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}").fullmatch
Options = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device as its provider describes it. kind: CPU, GPU or NPU. facts: what the provider says besides."""

    kind: str
    facts: Mapping[str, str]


def _no_options(_hardware: Hardware, _threads: int) -> Options:
    return {}


def _openvino(hardware: Hardware, threads: int) -> Options:
    """All of it in one text: other options are swallowed without effect. Left alone it computes in bfloat16 where the
    processor has that, and rounds what goes into 4-bit products to 8 bits."""
    kind = hardware.facts.get("ov_device", hardware.kind)
    told: dict[str, object] = {}
    if kind.startswith(("CPU", "GPU")):
        told = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    if kind == "CPU" and threads:
        told["INFERENCE_NUM_THREADS"] = threads
    return {"load_config": json.dumps({kind: told})} if told else {}


def _qnn(hardware: Hardware, _threads: int) -> Options:
    """On a processor it is an emulator, which has to know the chip that it is."""
    chip = {"htp_arch": "75", "soc_model": "57"} if hardware.kind == "CPU" else {}
    return {"backend_type": "htp", **chip}


_SHAPES = frozenset("Cast Concat Greater Range Reshape Shape Size Split Squeeze Sub Unsqueeze".split())
"""Operators that reckon with sizes and places: of a graph with free sizes some providers leave them to the CPU by
design."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What runs a device word.

    word: as users name it. name: as ONNX Runtime does. kinds: hardware that it runs on. extra: of this project.
    package, module: where its plugin library comes from; neither for one that an ONNX Runtime has built in. library:
    the plugin library that the user named. options: what it is told when a graph is opened, for some hardware and
    threads. left: operators of a graph that it may leave to the CPU. profile: of `paceline export`, whose graphs it
    takes whole.
    """

    word: str
    name: str
    kinds: str
    extra: str = ""
    package: str = ""
    module: str = ""
    library: Path | None = None
    options: Callable[[Hardware, int], Options] = _no_options
    left: frozenset[str] = frozenset()
    profile: str = ""
    alone: bool = False
    """Two calls at a time, of whatever sessions, end the process: every call takes the one lock of the provider."""
    empty: bool = True
    """Whether it takes tensors without elements; else they end the process."""
    wide: bool = True
    """Whether whole numbers of 64 bits are computed in 64 bits."""
    keeps: bool = False
    """Whether rows of a cache are moved in place in its memory, so that the cache stays there."""
    compiles: bool = False
    """Compiles a graph for long, and can write down what came of it."""
    talks: bool = False
    """Writes to the standard output while its library loads."""

    @property
    def plugin(self) -> bool:
        """Whether it is a library beside ONNX Runtime."""
        return bool(self.module) or self.library is not None


CPU = Provider("cpu", "CPUExecutionProvider", "CPU", "cpu", profile="cpu")
PROVIDERS = {
    provider.word: provider
    for provider in (
        CPU,
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "CPU/GPU/NPU",
            "openvino",
            "onnxruntime-ep-openvino",
            "onnxruntime_ep_openvino",
            options=_openvino,
            profile="portable",
        ),
        Provider(
            "webgpu",
            "WebGpuExecutionProvider",
            "GPU",
            "webgpu",
            "onnxruntime-ep-webgpu",
            "onnxruntime_ep_webgpu",
            left=_SHAPES,
            profile="static",
            alone=True,
            empty=False,
            wide=False,
            keeps=True,
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            "NPU",
            "qnn",
            "onnxruntime-qnn",
            "onnxruntime_qnn",
            options=_qnn,
            profile="static",
            empty=False,
            wide=False,
            compiles=True,
            talks=True,
        ),
        Provider("cuda", "CUDAExecutionProvider", "GPU", "cuda", left=_SHAPES, profile="portable"),
        Provider(
            "directml",
            "DmlExecutionProvider",
            "GPU",
            "directml",
            left=_SHAPES,
            profile="portable",
            wide=False,
        ),
    )
}
_named: dict[str, Provider] = {}
"""Those of libraries that the user named."""


def add_library(text: str) -> Provider:
    """Let NAME=PATH be a device word: a plugin library of the user's own. Raises DeviceError.

    Of such a library nothing is known, so it is treated with every care that any of the others needs.
    """
    name, equals, path = text.partition("=")
    if not (equals and _NAME(name) and path):
        raise DeviceError(
            f"a provider library is NAME=PATH, a name of letters, digits, - and _ and a file, not {text[:80]!r}"
        )
    if name in (*PROVIDERS, "auto"):
        raise DeviceError(f"{name!r} is a device of Paceline's own: give the library {path} another name")
    place = Path(path).absolute()
    if not place.is_file():
        there = "it is no file" if place.exists() else "there is no such file"
        raise DeviceError(f"provider library {path}: {there}")
    made = Provider(
        name,
        name,
        "CPU/GPU/NPU",
        library=place,
        left=_SHAPES,
        alone=True,
        empty=False,
        wide=False,
        talks=True,
    )
    known = _named.setdefault(name, made)
    if known.library != place:
        raise DeviceError(
            f"{name!r} is {known.library} in this process already: give the other library another name"
        )
    return known


def provider_of(word: str) -> Provider | None:
    """The provider of a device word, None for a word that stands for nothing."""
    return PROVIDERS.get(word) or _named.get(word)


def words() -> list[str]:
    """Every device word."""
    return [*PROVIDERS, *_named]


def provider_version(device: str) -> str:
    """Package and version of the plugin that runs a device, or its library's size and time; "" for one built in."""
    found = provider_of(device.partition(":")[0])
    if found is None or not found.plugin:
        return ""
    try:
        if found.library is not None:
            known = found.library.stat()
            return f"{found.library} {known.st_size} {known.st_mtime_ns}"
        return f"{found.package} {metadata.version(found.package)}"
    except (OSError, metadata.PackageNotFoundError):
        return found.package

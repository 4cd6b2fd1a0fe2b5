"""How a device name is understood, and whether the device is there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.runtime.model import providers
from paceline.runtime.model.ort import DeviceError, onnxruntime
from paceline.runtime.model.plugins import describe, hardware_of, offered
from paceline.runtime.model.providers import CPU, Hardware, Options, Provider

_WHICH = re.compile(r"[0-9]{1,3}|cpu|gpu|npu").fullmatch


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the user names it (`cuda:1`, `openvino:cpu`), and what runs it.

    number: of those that the provider has. hardware: what the provider says of it. plugin: ONNX Runtime's own object
    for a device of a plugin library.
    """

    name: str
    runs: Provider = CPU
    number: int = 0
    hardware: Hardware = field(default_factory=lambda: Hardware("CPU", {}), compare=False)
    detail: str = ""
    plugin: Any = field(default=None, compare=False, repr=False)

    @property
    def provider(self) -> str:
        """The name of its execution provider."""
        return self.runs.name

    @property
    def on_cpu(self) -> bool:
        """Whether it is the processor with ONNX Runtime's own operators, and ours."""
        return self.runs is CPU

    def options(self, threads: int) -> Options:
        """What its provider is told. threads: of a provider that runs on the processor, 0 for as many as it likes."""
        if self.runs.word in ("cuda", "directml"):
            return {"device_id": str(self.number)}
        return self.runs.options(self.hardware, threads)


def find_device(name: str) -> Device:
    """Understand `cpu`, `cuda:1`, `openvino`, `openvino:gpu`, ... Raises DeviceError where it cannot run.

    A word alone is its provider's first device; behind a colon stands which one, by number or by its kind.
    """
    word, colon, which = name.partition(":")
    provider = providers.provider_of(word)
    if provider is None or (colon and not _WHICH(which)):
        raise DeviceError(
            f"unknown device {name[:80]!r}: use one of {', '.join(providers.words())} (with :N for the Nth, or :cpu, "
            ":gpu, :npu for the first of a kind)"
        )
    ort = onnxruntime()  # a plan counts it as something that is there before
    if provider is CPU:
        if which.strip("0") not in ("", "cpu"):
            raise DeviceError(f"there is no device {name!r}: the processor is one device, 'cpu'")
        return Device(name, detail=f"{os.cpu_count()} logical cores")
    if not provider.plugin:
        return _built_in(name, provider, which, ort.get_available_providers())
    devices = [_device(provider, number, found) for number, found in enumerate(offered(provider))]
    if which.isdecimal():
        chosen = devices[int(which) :][:1]
    else:
        chosen = [d for d in devices if which in ("", d.hardware.kind.lower())]
    if not chosen:
        there = ", ".join(f"{d.name} ({d.hardware.kind})" for d in devices)
        raise DeviceError(f"there is no device {name!r} here: there is {there}")
    return Device(name, provider, chosen[0].number, chosen[0].hardware, chosen[0].detail, chosen[0].plugin)


def devices_of(provider: Provider) -> list[Device]:
    """Every device of a provider that is here. Raises DeviceError where there is none."""
    if provider.plugin:
        return [_device(provider, number, found) for number, found in enumerate(offered(provider))]
    return [find_device(provider.word)]


def _device(provider: Provider, number: int, found: Any) -> Device:
    name = f"{provider.word}:{number}" if number else provider.word
    hardware, detail = hardware_of(found), describe(found)
    if hardware.kind not in provider.kinds:  # its own hardware is not here, and a program stands in for it
        detail = f"emulated on {detail}"
    return Device(name, provider, number, hardware, detail, found)


def _built_in(name: str, provider: Provider, which: str, there: Sequence[str]) -> Device:
    if provider.name not in there:
        raise DeviceError(
            f"device {name!r} needs an ONNX Runtime with {provider.name}: pip install 'paceline[{provider.extra}]' "
            "in an environment without another onnxruntime"
        )
    if which not in ("", "gpu") and not which.isdecimal():
        raise DeviceError(f"there is no device {name!r}: {provider.word} has GPUs only")
    number = int(which) if which.isdecimal() else 0
    return Device(name, provider, number, Hardware("GPU", {}))

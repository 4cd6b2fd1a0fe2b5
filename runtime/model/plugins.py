"""Plugin libraries of execution providers: registered once in a process, and the devices that they then offer."""

from __future__ import annotations

import importlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from paceline.runtime.model.ort import DeviceError, first_line, is_of_onnxruntime, onnxruntime
from paceline.runtime.model.providers import Hardware, Provider

_registering = Lock()
_registered: dict[str, tuple[Any, ...]] = {}
"""What each word was found to offer: ONNX Runtime's own device objects. Nothing is ever unregistered: a session that
runs after that ends the process."""
_turns: defaultdict[str, RLock] = defaultdict(RLock)


def offered(provider: Provider) -> tuple[Any, ...]:
    """The devices of a plugin provider, ONNX Runtime's own objects, one at least.

    Raises DeviceError that says what is lacking: the package, what its library needs, or a device.
    """
    with _registering:
        if provider.word not in _registered:
            _registered[provider.word] = _register(provider)
        found = _registered[provider.word]
    if not found:
        raise DeviceError(f"{provider.word} has no device here: {_none(provider)}")
    return found


def hardware_of(device: Any) -> Hardware:
    """What ONNX Runtime says of a device."""
    return Hardware(str(device.device.type.name), dict(device.ep_metadata))


def describe(device: Any) -> str:
    """Name or vendor of a device, as far as they are known."""
    facts, hardware = dict(device.ep_metadata), device.device
    name = facts.get("FULL_DEVICE_NAME") or hardware.metadata.get("Description") or hardware.vendor
    return " ".join(str(name or f"vendor {hardware.vendor_id:#x}").split())[:80]


def turn_of(provider: Provider) -> RLock:
    """The lock under which every call of a provider that stands no two at a time has to be made."""
    return _turns[provider.name]


@contextmanager
def stdout_kept(provider: Provider) -> Iterator[None]:
    """Within this block what a library writes to the standard output goes to the standard error: answers stand there.

    Of a provider that is known to write there; others are left alone.
    """
    if not provider.talks:
        yield
        return
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # closed, or not there at all
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _register(provider: Provider) -> tuple[Any, ...]:
    ort, path = onnxruntime(), _library(provider)
    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceError(
            f"device {provider.word!r} needs an ONNX Runtime that takes plugin libraries: "
            "pip install -U 'onnxruntime>=1.24'"
        )
    before = [d.ep_name for d in ort.get_ep_devices()]
    try:
        with stdout_kept(provider):
            ort.register_execution_provider_library(provider.name, str(path))
    except Exception as error:
        if not (is_of_onnxruntime(error) or isinstance(error, RuntimeError)):
            raise
        raise DeviceError(f"{provider.word}: {path} is not to be used: {_why(error)}") from None
    after = ort.get_ep_devices()
    if provider.library is None:
        return tuple(d for d in after if d.ep_name == provider.name)
    for name in before:  # of the same library there may be devices already, under the same name
        after.remove(next(d for d in after if d.ep_name == name))
    return tuple(after)


def _library(provider: Provider) -> Path:
    """Where the plugin library lies."""
    if provider.library is not None:
        return provider.library
    try:
        package = importlib.import_module(provider.module)
        return Path(package.get_library_path())
    except ModuleNotFoundError:
        raise DeviceError(
            f"device {provider.word!r} needs the package {provider.package}: "
            f"pip install 'paceline[{provider.extra}]'"
        ) from None
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise DeviceError(
            f"device {provider.word!r}: the package {provider.package} cannot be used ({first_line(error)}): "
            f"install it again"
        ) from None


def _why(error: Exception) -> str:
    """The part of ONNX Runtime's message that tells something."""
    text = first_line(error)
    return text.rpartition("with error: ")[2] or text


def _none(provider: Provider) -> str:
    """Why a library that registered offers nothing."""
    if "GPU" in provider.kinds and "CPU" not in provider.kinds:
        return "ONNX Runtime sees no display adapter"
    return f"its library found no hardware that it runs on ({provider.kinds})"

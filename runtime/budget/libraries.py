"""What the library of a device takes in a process: measured in a process of its own, guessed before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paceline.runtime.bundle.measurements import keep, read_all
from paceline.runtime.model.device import Device
from paceline.runtime.model.key import device_key
from paceline.runtime.model.providers import PROVIDERS, Provider

_FILE = "libraries.json"
_KEPT = 100
_MOST = 2**33
"""Bytes that no library takes: then the file was damaged."""


class Library(NamedTuple):
    """Bytes: once in a process, with the first graph that runs there, and for every graph, however small."""

    once: int
    each: int


NONE = Library(0, 0)
GUESSES = {
    "qnn": Library(100_000_000, 24_000_000),
    "webgpu": Library(100_000_000, 2_000_000),
    "cuda": Library(500_000_000, 2_000_000),
}
"""By device word. Of QNN's emulator and of WebGPU over llvmpipe somewhat more than was measured, of CUDA never seen."""
_USUAL = Library(150_000_000, 10_000_000)
"""Of every other one, none of which was measured."""


def guess(provider: Provider) -> Library:
    """Before it was measured."""
    return NONE if provider is PROVIDERS["cpu"] else GUESSES.get(provider.word, _USUAL)


def library_of(device: Device) -> Library:
    """What was measured on this machine with these versions, else a guess; nothing of the CPU."""
    return guess(device.runs) if device.on_cpu else recall_library(device.name) or guess(device.runs)


def brought(devices: Iterable[Device], before: Iterable[Device] = ()) -> int:
    """Bytes that come into a process with the first graph on each device. before: devices that have graphs already."""
    there = {(device.runs.word, device.number) for device in before}
    new = {key: device for device in devices if (key := (device.runs.word, device.number)) not in there}
    return sum(library_of(device).once for device in new.values())


def recall_library(name: str) -> Library | None:
    """What was measured of the device of this name; None where nothing was, or where the file makes no sense."""
    found = read_all(_FILE).get(device_key(name))
    if not isinstance(found, list) or len(found) != len(NONE):
        return None
    if not all(type(size) is int and 0 <= size <= _MOST for size in found):
        return None
    return Library(*found)


def keep_library(name: str, found: Library) -> None:
    """Remember it for this device, its library's version and this machine."""
    keep(_FILE, device_key(name), list(found), _KEPT)

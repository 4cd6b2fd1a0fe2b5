"""A session on a device other than the CPU: the whole graph runs there, or the error names what does not.

Any graph is opened on any device here; the CPU, with kernels of our own, is the business of `graph.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.runtime.model.compiled import NO_FORM, Compiled
from paceline.runtime.model.device import Device
from paceline.runtime.model.ort import DeviceError, first_line, is_of_onnxruntime, onnxruntime
from paceline.runtime.model.plugins import stdout_kept, turn_of

_ENDLESS = b"\x18" + b"\x80" * 8 + b"\x40"
"""How a file has the number 2^62, which attention once took for a window without an end: it is 0 in 32 bits."""
_FUSED = {"RMSNormalization", "RotaryEmbedding"}
"""Operators that only graphs for the CPU have, and graphs of before."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Placed:
    """A node as ONNX Runtime placed it."""

    provider: str
    operator: str
    name: str


def turn(device: Device) -> AbstractContextManager[object]:
    """What every call of a session on this device is made under."""
    return turn_of(device.runs) if device.runs.alone else nullcontext()


def open_on(
    device: Device,
    raw: bytes,
    path: Path,
    threads: int,
    made: Callable[[], Any],
    packed: bool,
    compiled: Compiled = NO_FORM,
    other: bool = True,
) -> Any:
    """A session that runs a graph on a device that is not the CPU.

    made: the SessionOptions, anew at each call. packed: whether the graph was exported for the CPU. compiled: its
    compiled form, which is run where it is known; else who opens the graph has to `keep` it, or to give it up. other:
    whether another profile of the export makes another graph of it.
    Raises DeviceError that names the nodes which the device does not take, or says what else went wrong.
    """
    if not device.runs.wide and _ENDLESS in raw:
        again = f", {_other(device.runs.profile or 'portable')}" if other else ""
        raise DeviceError(
            f"{path} was exported before {device.name} could run such graphs, and would be computed wrongly there: "
            f"run this part on the CPU{again}"
        )
    with turn(device), stdout_kept(device.runs):
        try:
            session = _formed(device, raw, threads, made, compiled)
        except Exception as error:
            if not _is_of_provider(error):
                raise
            if "fallback" not in str(error):
                raise _unusable(device, path, error) from None
            session = _named(device, raw, path, threads, made())
        nodes = placement(session)
    own = device.plugin.ep_name if device.plugin is not None else device.provider
    left = [node for node in nodes if node.provider != own]
    if len(left) == len(nodes) or any(node.operator not in device.runs.left for node in left):
        free = any(not isinstance(size, int) for given in session.get_inputs() for size in given.shape)
        profile = _profile(device, left, packed, free) if other else ""
        raise DeviceError(_not_whole(device, path, left, len(nodes), profile))
    return session


def placement(session: Any) -> list[Placed]:
    """Where ONNX Runtime put every node when it opened a session."""
    return [
        Placed(str(part.ep_name), str(node.op_type), str(node.name))
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _named(device: Device, raw: bytes, path: Path, threads: int, options: Any) -> Any:
    """The same without the demand that nothing is left to the CPU: strictness names no node."""
    try:
        return _opened(device, raw, threads, options, strict=False)
    except Exception as error:
        if not _is_of_provider(error):
            raise
        raise _unusable(device, path, error) from None


def _formed(device: Device, raw: bytes, threads: int, made: Callable[[], Any], compiled: Compiled) -> Any:
    """From the compiled form where one is known, else compiled; strict in any case."""
    if (form := compiled.read()) is not None:
        try:
            return _opened(device, form, threads, made(), strict=True)
        except Exception as error:
            if not _is_of_provider(error):
                raise
            compiled.drop()
    options = made()
    for name, value in compiled.wanted().items():
        options.add_session_config_entry(name, value)
    return _opened(device, raw, threads, options, strict=True)


def _opened(device: Device, raw: bytes, threads: int, options: Any, strict: bool) -> Any:
    ort = onnxruntime()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    told = dict(device.options(threads))
    if device.plugin is None:
        return ort.InferenceSession(raw, options, providers=[(device.provider, told)], enable_fallback=0)
    # A list of providers would put the CPU in the place of the device, and say nothing.
    options.add_provider_for_devices([device.plugin], told)
    return ort.InferenceSession(raw, options, enable_fallback=0)


def _is_of_provider(error: Exception) -> bool:
    return is_of_onnxruntime(error) or type(error) is RuntimeError


def _unusable(device: Device, path: Path, error: Exception) -> DeviceError:
    return DeviceError(
        f"{device.name} cannot open {path}: {first_line(error)}; 'paceline devices' tries what this machine has"
    )


def _profile(device: Device, left: list[Placed], packed: bool, free: bool) -> str:
    """The profile of `paceline export` that would help, "" where none would. free: whether the graph has free sizes."""
    profile = device.runs.profile
    old = any(node.operator in _FUSED for node in left)
    return profile if packed or old or (free and profile == "static") else ""


def _not_whole(device: Device, path: Path, left: list[Placed], nodes: int, profile: str) -> str:
    wrong = [node for node in left if node.operator not in device.runs.left] or left
    kinds: dict[str, list[str]] = {}
    for node in wrong:
        kinds.setdefault(_plain(node.operator), []).append(_plain(node.name))
    named = [_told(kind, names) for kind, names in kinds.items()]
    more = f" and {len(named) - _NAMED} other kinds" if len(named) > _NAMED else ""
    remedy = "run this part on the CPU"
    if profile:
        remedy += f", {_other(profile)}"
    return (
        f"{device.name} does not take {len(wrong)} of {nodes} nodes of {path}: {', '.join(named[:_NAMED])}{more}; "
        f"{remedy} (docs/devices.md)"
    )


def _other(profile: str) -> str:
    """What to give in place of a graph; nobody has the checkpoint of every bundle."""
    return (
        f"or export the model with --profile {profile}, or name another bundle of that profile (-b; its draft model "
        "alone with --drafter-bundle)"
    )


def _told(kind: str, names: list[str]) -> str:
    """Nodes of one operator; those of a function's body have no names of their own."""
    if not names[0]:
        return f"{len(names)} of {kind}"
    return f"{kind} {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _plain(text: str) -> str:
    """A name out of a bundle, for a message."""
    return "".join(c for c in text if c.isprintable())[:60]

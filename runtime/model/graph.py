"""One ONNX graph opened for running: what it may take, and what to say where ONNX Runtime refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from paceline.memory.size import show_size
from paceline.runtime.bundle.admission import admit, read_graph
from paceline.runtime.manifest import BundleError, Part, Weight
from paceline.runtime.model.compiled import NO_FORM, Compiled
from paceline.runtime.model.device import Device
from paceline.runtime.model.opening import open_on, turn
from paceline.runtime.model.ort import first_line, is_of_onnxruntime, onnxruntime
from paceline.runtime.model.values import DeviceValue, Turn
from paceline.runtime.model.weights import Weights, load_weights
from paceline.runtime.ops import library

Array = npt.NDArray[Any]
Shape = tuple[int | str | None, ...]
"""Fixed sizes are ints."""
_AS_REQUESTED = 1
"""ONNX Runtime's kSameAsRequested."""
_BEYOND = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")
"""How its arena refuses."""


@dataclass(frozen=True, slots=True)
class Temporaries:
    """Bytes that the temporaries of a bundle's graphs may take together: what honest ones need, and the most."""

    need: int = sys.maxsize
    most: int = sys.maxsize


_ANY = Temporaries()
_arena: list[int] = []
"""Most bytes of the arena that this process has made; -1 where it could make none."""


class RunError(BundleError):
    """ONNX Runtime, or the device that it runs a graph on, failed in the middle of a run.

    away: on a device that is not the CPU.
    """

    def __init__(self, message: str, away: bool) -> None:
        super().__init__(message)
        self.away = away


class Graph:
    """An ONNX Runtime session on one device.

    On the CPU our operators run in the native library where there is one and `kernels` is true, else as the ONNX
    functions that the graph carries; other devices always take the functions, and the whole graph or none of it. `part`
    tells which weights the native kernels read out of huge pages. `raw` is the content of the file at `path` where it
    was read already: what was checked is what runs. `temporaries`: what its runs may take, see `_share_arena`.
    `compiled`: see `open_on`.
    Two sessions in one process must not spin against each other: every pool stops spinning when its run ends.
    `before` is how many this process had opened before it. Raises BundleError for a graph that cannot be opened,
    DeviceError for one that its device does not take whole.
    """

    opened = 0
    session: Any = None
    turn: Turn = nullcontext()
    """What everything that touches this session, or values on its device, is done under."""

    def __init__(
        self,
        path: Path,
        device: Device,
        threads: int,
        part: Part,
        kernels: bool = True,
        raw: bytes | None = None,
        temporaries: Temporaries = _ANY,
        compiled: Compiled = NO_FORM,
    ) -> None:
        if raw is None:
            raw = read_graph(path)
        admit(raw, part, path)
        self._ort = onnxruntime()
        self.path, self.device, self.on_cpu = path, device, device.on_cpu
        self.turn = turn(device)
        self.native = kernels and self.on_cpu and library.available()
        self.weights: Weights | None = None
        if self.on_cpu:
            self.session = self._open(raw, part, threads, temporaries)
        else:

            def made() -> Any:
                return self._options(threads, temporaries)

            self.session = open_on(
                device, raw, path, threads, made, part.layout is not None, compiled, part.exported
            )
        self.before, Graph.opened = Graph.opened, Graph.opened + 1
        self.inputs: dict[str, Shape] = {i.name: tuple(i.shape) for i in self.session.get_inputs()}
        self.outputs: dict[str, Shape] = {o.name: tuple(o.shape) for o in self.session.get_outputs()}
        plugin = device.plugin
        infos = () if self.on_cpu else self.session.get_input_memory_infos()
        self._elsewhere = {
            name for name, info in zip(self.inputs, infos, strict=not self.on_cpu) if info.name != "Cpu"
        }
        self._shared: Any = None
        if plugin is not None and self._elsewhere:
            self._shared = plugin.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)

    def close(self) -> None:
        """Let go of what it holds: it cannot run again."""
        with self.turn:
            self.session = None

    def __del__(self) -> None:
        self.close()

    def _options(self, threads: int, temporaries: Temporaries) -> Any:
        """What holds of a session on any device."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # It would remember a pattern for every shape of a pass.
        options.enable_mem_pattern = False
        if _share_arena(temporaries):
            options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # It would take bytes of its own format too, which nobody here reads.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent.absolute())
        )
        return options

    def _open(self, raw: bytes, part: Part, threads: int, temporaries: Temporaries) -> Any:
        """A session on the CPU, with our kernels where they are wanted and there."""
        options = self._options(threads, temporaries)
        try:
            if self.native:
                library.register(options)
                self.native = library.available()
            if self.native:
                self._take_weights(options, self.path.with_name(Path(part.data).name), part.weights)
            return self._ort.InferenceSession(
                raw, options, providers=[self.device.provider], enable_fallback=0
            )
        except Exception as error:
            if is_of_onnxruntime(error):
                if (refusal := _too_much(error)) is not None:
                    raise BundleError(f"{self.path} {refusal}") from None
                raise BundleError(
                    f"ONNX Runtime cannot load {self.path} on {self.device.name}: {first_line(error)}; "
                    "export the model again"
                ) from None
            raise

    def _take_weights(self, options: Any, path: Path, listed: Mapping[str, Weight]) -> None:
        """Give the session the listed weights without a copy; the file must exist but is not read again for them."""
        self.weights = load_weights(path, listed)
        self._kept = {} if self.weights is None else self.weights.values(listed)  # the session has pointers
        for name, value in self._kept.items():
            options.add_initializer(name, value)

    @property
    def provider(self) -> str:
        """The execution provider that really runs it: which node runs where was asked when it was opened."""
        return self.device.provider

    def value(self, array: Array) -> Any:
        """An OrtValue on an array's own memory."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def sees(self, name: str) -> bool:
        """Whether a run sees what was written into an array after that was bound to this input."""
        return name not in self._elsewhere

    @property
    def shares_memory(self) -> bool:
        """Whether its device reads another memory than arrays lie in, which this process sees too."""
        return self._shared is not None

    def shown(self, shape: Sequence[int], kind: npt.DTypeLike) -> Any:
        """An OrtValue in the memory that is shared with the device; its `numpy()` is a view of it."""
        return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, memory_info=self._shared)

    def kept(self, shape: Sequence[int], kind: npt.DTypeLike) -> DeviceValue:
        """A value in the memory of its device, which runs are bound to without a copy."""
        made, plugin = self._ort.OrtValue.ortvalue_from_shape_and_type, self.device.plugin
        with self.turn:
            if plugin is None:
                return DeviceValue(made(list(shape), kind, "cpu"), shape, kind, self.turn)
            place = plugin.memory_info(self._ort.OrtDeviceMemoryType.DEFAULT)
            return DeviceValue(made(list(shape), kind, memory_info=place), shape, kind, self.turn)

    def beside(self, raw: bytes, name: str) -> Any:
        """A session of another graph on its device. Raises DeviceError, which calls it by this name."""
        return open_on(self.device, raw, Path(name), 1, lambda: self._options(1, _ANY), packed=False)

    def shrinking(self) -> Any:
        """The options of a run that gives temporaries which are free after it back to the system."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def check(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> None:
        """Raise BundleError unless names, ranks and fixed sizes (ints) are those that the manifest implies."""
        for kind, said, found in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            if lacking := [name for name in said if name not in found]:
                self._differs(f"implies an {kind} {lacking[0]}", "has none")
            if surplus := [name for name in found if name not in said]:
                self._differs(f"implies no {kind} {surplus[0]!r}", "has one")
            for name, shape in said.items():
                if not _fits(shape, found[name]):
                    self._differs(f"implies {name} {_shown(shape)}", f"has {_shown(found[name])}")

    def _differs(self, said: str, found: str) -> None:
        raise BundleError(
            f"{self.path} is not the graph of the manifest, which {said} where the graph {found}: "
            "export the model again"
        )

    def refused(self, error: Exception) -> Exception:
        """What ONNX Runtime raised as a BundleError of one line; any other error as it is."""
        # Its Python binding raises plain RuntimeError too.
        if is_of_onnxruntime(error) or type(error) is RuntimeError:
            if (refusal := _too_much(error)) is not None:
                return BundleError(f"{self.path} {refusal}")
            remedy = "export the model again" if self.on_cpu else "run this part on the CPU"
            return RunError(
                f"ONNX Runtime cannot run {self.path} on {self.device.name}: {first_line(error)}; {remedy}",
                away=not self.on_cpu,
            )
        return error


def _share_arena(asked: Temporaries) -> bool:
    """Whether a session may take its temporaries from the arena of this process, which is made for the first one.

    ONNX Runtime makes one such arena only: it keeps the first bound. A graph that needs more than that gets an arena
    of its own, without a bound.
    """
    if not _arena:
        _arena.append(asked.most if _make_arena(asked.most) else -1)
    return asked.need <= _arena[0]


def _make_arena(most: int) -> bool:
    """Make one arena for the temporaries of all sessions of this process, which grows by what is asked for.

    Each session's own would double, and keep, its size; without an arena the C library's heap breaks into pieces
    as passes of many widths come and go. False where this ONNX Runtime cannot.
    """
    ort = onnxruntime()
    try:
        place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        settings = ort.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED, "max_mem": most})
        ort.create_and_register_allocator(place, settings)
    except Exception as error:
        if is_of_onnxruntime(error) or isinstance(error, (AttributeError, RuntimeError)):
            return False
        raise
    return True


def _too_much(error: Exception) -> str | None:
    """What to say of a graph that asked for more than the arena may hold; None for any other error."""
    if (found := _BEYOND.search(str(error))) is None:
        return None
    left, wanted = (show_size(int(number)) for number in found.groups())
    return (
        f"is a graph that asks for {wanted} at once where {left} of the memory for its temporaries are left: "
        "do not use this bundle, or give it more memory if you trust it"
    )


def _fits(said: Shape, found: Shape) -> bool:
    """Same rank, and same size wherever both are fixed."""
    return len(said) == len(found) and all(
        a == b for a, b in zip(said, found, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _shown(shape: Shape) -> str:
    sizes = ("".join(c for c in str(size)[:20] if c.isprintable()) for size in shape)
    return f"[{', '.join(sizes)}]"

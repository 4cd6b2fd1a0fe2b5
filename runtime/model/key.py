"""What a measurement of a part holds for."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib import metadata

from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import Part
from paceline.runtime.model.ort import runtime_version
from paceline.runtime.model.providers import provider_version
from paceline.runtime.ops import library


def system() -> str:
    """System, release and machine. `platform.platform()` would start a program of the search path to know more."""
    known = platform.uname()
    return f"{known.system} {known.release} {known.machine}"


def device_key(name: str) -> str:
    """A digest of what a measurement of a device alone holds for."""
    parts = (name, provider_version(name), runtime_version(), metadata.version("paceline"), system())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Key:
    """What a measurement of a part holds for: its costs, and what it takes besides weights and buffers."""

    bundle: Bundle
    part: Part
    device: str
    threads: int
    cache: CacheFormat
    halved: bool = False
    """Whether it runs in two graphs."""

    def text(self) -> str:
        """A digest that changes with the files, the device and the versions of what runs them."""
        files, part = self.bundle.manifest.files, self.part
        cache = self.cache if part.has_form(self.cache) else "fp32"
        static = () if part.static is None else map(part.beside, part.static.names())
        halves = [part.split.first] if part.split is not None and self.halved else []
        parts = (
            *(files[graph].sha256 for graph in (*part.graphs_for(cache), *static, *halves)),
            *(files[data].sha256 if data in files else "" for data in part.stores),
            self.device,
            str(self.threads),
            self.cache,
            metadata.version("paceline"),
            library.kernels_in_use(),
            runtime_version(),
            *filter(None, [provider_version(self.device)]),
            system(),
        )
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]

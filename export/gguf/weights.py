"""Tensors of a GGUF file under the names and in the layout that transformers has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from paceline.export.errors import ExportError
from paceline.export.gguf.families import Config, Family
from paceline.export.gguf.reader import Floats, Gguf, Stored
from paceline.export.gguf.scaling import FACTORS, LONG, SHORT

_LAYER = re.compile(r"blk\.([0-9]+)\.")
_SUFFIX = re.compile(r"(.+?)(\.weight|\.bias)?")
_PLAIN = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of one file, for the model that its configuration describes."""

    file: Gguf
    family: Family
    config: Config

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the names that transformers has. Raises ExportError for a tensor that the family does not have."""
        found = {}
        for stored in self._taken():
            name, kind = self._name(stored.name)
            shape = stored.shape
            found[name] = shape[::-1] if self._transposed(kind, shape) else shape
        return found

    def dtype(self) -> str:
        """The 16-bit type of most weights, float32 for blocks of codes and for float32."""
        sizes: dict[str, int] = {}
        for stored in self.file.tensors.values():
            sizes[stored.kind] = sizes.get(stored.kind, 0) + stored.data.size
        return _PLAIN.get(max(sizes, key=lambda kind: sizes[kind]), "float32")

    def arrays(self) -> dict[str, Floats]:
        """Every tensor in float32, contiguous."""
        return {self._name(stored.name)[0]: self._array(stored) for stored in self._taken()}

    def _taken(self) -> Iterable[Stored]:
        consumed = {FACTORS} if self.family.factors else set()
        if self.config.get("rope_parameters", {}).get("rope_type") == "longrope":
            consumed |= {LONG, SHORT}
        return (stored for name, stored in self.file.tensors.items() if name not in consumed)

    def _name(self, name: str) -> tuple[str, str]:
        """The name of a tensor in transformers, and its kind: its own name with a star for the layer."""
        layer = _LAYER.match(name)
        parts = _SUFFIX.fullmatch(_LAYER.sub("blk.*.", name))
        kind = parts[1] if parts else name
        if parts is None or kind not in self.family.names:
            raise ExportError(
                f"{self.file.path}: the tensor {name[:80]!r} is not carried: export the Hugging Face model that the "
                "file was made from"
            )
        return self.family.names[kind].replace("*", layer[1] if layer else "*") + (parts[2] or ""), kind

    def _transposed(self, kind: str, shape: tuple[int, ...]) -> bool:
        return kind in self.family.transposed and len(shape) == 2

    def _array(self, stored: Stored) -> Floats:
        name, kind = self._name(stored.name)
        values = stored.values().reshape(stored.shape)
        if self.family.permuted and kind in ("blk.*.attn_q", "blk.*.attn_k"):
            heads = self.config["num_attention_heads" if kind == "blk.*.attn_q" else "num_key_value_heads"]
            if len(values) % (2 * heads):
                raise ExportError(
                    f"{self.file.path}: {stored.name} has no {heads} heads of even size: fetch it again"
                )
            values = (
                values.reshape(heads, len(values) // heads // 2, 2, -1).swapaxes(1, 2).reshape(stored.shape)
            )
        if self.family.norms_above_one and name.endswith("norm.weight"):
            values = values - np.float32(1)
        if self._transposed(kind, stored.shape):
            values = values.T
        return np.ascontiguousarray(values)

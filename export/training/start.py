"""Trained weights to go on from: those of a model folder, or those inside an fp16 bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from paceline.runtime.manifest import read_manifest

Weights = dict[str, torch.Tensor]
_MATRIX = re.compile(r"model\.(?:(model\.layers\.\d+\.\w+\.)(\w+)|(lm_head))\.lifted.*\.packed\.\w+")


def weights_from(path: Path, drafter: str | None = None) -> Weights:
    """Parameters by their Hugging Face names, float32. `drafter` names one of a bundle's.

    Raises ValueError where `path` is neither a model folder of `train lm` nor a bundle with unquantised weights.
    """
    if (path / "model.safetensors").is_file():
        return {k: v.float() for k, v in load_file(path / "model.safetensors").items()}
    if not (path / "manifest.json").is_file():
        raise ValueError(f"no model to go on from at {path}: give a folder of 'paceline train lm', or a bundle")
    manifest = read_manifest(path)
    part = manifest.target if drafter is None else manifest.drafters[drafter]
    if part.architecture != "llama" or part.quant != "none":
        raise ValueError(
            f"{path} holds {part.architecture} weights of quantisation {part.quant}: training goes on from "
            "unquantised Llama weights only ('paceline export --quant none')"
        )
    return _of_graph(onnx.load(path / part.graph), part.kv_heads * part.head_dim)


def _of_graph(model: onnx.ModelProto, kv_width: int) -> Weights:
    """Undo packing and fusion: q, k, v lie beside each other in one matrix, gate and up in another."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith("norm.weight"):
            found[tensor.name.removeprefix("model.")] = numpy_helper.to_array(tensor)
        elif named := _MATRIX.fullmatch(tensor.name):
            tiles = numpy_helper.to_array(tensor)
            matrix = tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1).T.astype(np.float32)
            found |= _split(named.group(1) or "", named.group(2) or named.group(3), matrix, kv_width)
    return {k: torch.from_numpy(np.array(v, np.float32)) for k, v in found.items()}


def _split(
    place: str, name: str, matrix: npt.NDArray[np.float32], kv_width: int
) -> Mapping[str, npt.NDArray[np.float32]]:
    if name == "lm_head":
        return {"model.embed_tokens.weight": matrix}
    if name == "q_proj":
        parts = np.split(matrix, [len(matrix) - 2 * kv_width, len(matrix) - kv_width])
        return {f"{place}{n}_proj.weight": p for n, p in zip("qkv", parts, strict=True)}
    if name == "gate_proj":
        parts = np.split(matrix, 2)
        return {f"{place}{n}_proj.weight": p for n, p in zip(("gate", "up"), parts, strict=True)}
    return {f"{place}{name}.weight": matrix}

"""Trained weights to go on from: those of a model folder, or those inside an fp16 bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file

from paceline.export.folder import read_json
from paceline.runtime.manifest import MANIFEST, read_manifest

Weights = dict[str, torch.Tensor]
_MATRIX = re.compile(r"model\.(?:(model\.layers\.\d+\.\w+\.)(\w+)|(lm_head))\.lifted.*\.packed\.\w+")


class Start(NamedTuple):
    """Weights by their Hugging Face names, float32, and the fields of their `Shape`."""

    weights: Weights
    shape: dict[str, int]


def start_from(path: Path, drafter: bool = False) -> Start:
    """What a folder of `train` or a bundle made of one holds: the target, or the first drafter.

    Raises ValueError for anything else, quantised bundles among them.
    """
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        config = read_json(path / "config.json")
        weights = {k: v.float() for k, v in load_file(path / "model.safetensors").items()}
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        return Start(weights, _shape(weights, heads, kv_heads, config["max_position_embeddings"]))
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"no model to go on from at {path}: give a folder of 'paceline train lm', or a bundle"
        )
    manifest = read_manifest(path)
    part = next(iter(manifest.drafters.values()), None) if drafter else manifest.target
    if part is None:
        raise ValueError(
            f"{path} has no draft model to go on from: leave --from out, or give a trained folder"
        )
    if part.architecture != "llama" or part.quant != "none":
        raise ValueError(
            f"{path} holds {part.architecture} weights of quantisation {part.quant}: training goes on from "
            "unquantised Llama weights ('paceline export' without --quant)"
        )
    graph = onnx.load(path / part.graph, load_external_data=False)
    weights = _of_graph(graph, path / part.data, part.kv_heads * part.head_dim)
    heads = len(weights["model.layers.0.self_attn.q_proj.weight"]) // part.head_dim
    return Start(weights, _shape(weights, heads, part.kv_heads, part.context))


def _shape(weights: Weights, heads: int, kv_heads: int, context: int) -> dict[str, int]:
    vocab, hidden = weights["model.embed_tokens.weight"].shape
    return {
        "hidden": hidden,
        "layers": sum(name.endswith("input_layernorm.weight") for name in weights),
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn": len(weights["model.layers.0.mlp.gate_proj.weight"]),
        "vocab": vocab,
        "context": context,
    }


def _of_graph(model: onnx.ModelProto, data: Path, kv_width: int) -> Weights:
    """Undo packing, padding and fusion: q, k, v lie beside each other in one matrix, gate and up in another."""
    columns = {
        name: attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "N"
        for name in node.input
    }
    found: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith("norm.weight"):
            found[tensor.name.removeprefix("model.")] = tensor_values(tensor, data)
        elif named := _MATRIX.fullmatch(tensor.name):
            tiles = tensor_values(tensor, data)
            matrix = tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1).T.astype(np.float32)
            matrix = matrix[: columns[tensor.name]]
            found |= _split(named.group(1) or "", named.group(2) or named.group(3), matrix, kv_width)
    return {k: torch.from_numpy(np.array(v, np.float32)) for k, v in found.items()}


def tensor_values(tensor: onnx.TensorProto, data: Path) -> npt.NDArray[Any]:
    """A tensor that stands in the graph, or in its data file.

    onnx itself reads no file that has hard links, as installers make them.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    return np.memmap(data, dtype, "r", int(place.get("offset", "0")), shape)


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

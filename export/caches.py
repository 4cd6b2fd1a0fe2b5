"""The graphs of a part for caches of 16 and 8 bits: the same weights, other inputs, other attention bodies."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import msgspec
import onnx_ir as ir

from paceline.export.atomic import new_folder
from paceline.export.errors import ExportError
from paceline.export.functions import append_functions
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import SCHEMA, File, Manifest, read_manifest, write_manifest
from paceline.runtime.ops import tree_attention as contract

Narrow = Literal["fp16", "int8"]
_TYPES: dict[Narrow, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
_INPUTS = {
    contract.NAME: (*contract.INPUTS, *contract.OPTIONAL_INPUTS),
    contract.ROTARY_NAME: contract.ROTARY_INPUTS,
}


def write_cached_graphs(graph: ir.Model, file: Path) -> dict[Narrow, str]:
    """Write a graph for each narrow cache beside `file`, the finished graph, and return their names.

    All read the weights of `file`. Raises ExportError for a graph whose cache is read by other than attention.
    """
    names: dict[Narrow, str] = {}
    for form in get_args(Narrow):
        names[form] = f"{file.stem}.{form}{file.suffix}"
        made = ir.to_proto(cached_as(graph, form)).SerializeToString()
        write_atomically(file.parent / names[form], made, private=False)
    return names


def add_caches(folder: Path) -> Manifest:
    """Give the parts of a bundle that was exported before these graphs; nothing else of it changes.

    It is made beside `folder`, of links to the same files, and takes its place when it is whole. Raises BundleError
    for a folder without manifest, ExportError for graphs that are not this exporter's, OSError as the disk does.
    """
    read_manifest(folder)
    folder = folder.resolve()
    with new_folder(folder, force=True) as work:
        shutil.copytree(folder, work, symlinks=True, copy_function=link, dirs_exist_ok=True)
        return _add_caches(work)


def link(file: str, to: str) -> None:
    """Another name of a file or a link, or a copy where the file system has none."""
    try:
        os.link(file, to, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, to, follow_symlinks=False)


def _add_caches(folder: Path) -> Manifest:
    old = read_manifest(folder)
    files, drafters = dict(old.files), dict(old.drafters)
    parts = {"target": old.target, **drafters}
    for name, part in parts.items():
        place = PurePosixPath(part.graph).parent
        names = write_cached_graphs(ir.load(folder / part.graph), folder / part.graph)
        caches = {form: str(place / file) for form, file in names.items()}
        for path in caches.values():
            raw = (folder / path).read_bytes()
            files[path] = File(len(raw), hashlib.sha256(raw).hexdigest())
        parts[name] = msgspec.structs.replace(part, caches=caches)
    target = parts.pop("target")
    new = msgspec.structs.replace(
        old, schema=SCHEMA, target=target, drafters=parts, files=dict(sorted(files.items()))
    )
    write_manifest(new, folder)
    return new


def cached_as(graph: ir.Model, form: Narrow) -> ir.Model:
    """A twin of a finished graph that reads a narrow cache; their weights are the same. Raises ExportError."""
    model = graph.clone()
    inputs = {value.name: value for value in model.graph.inputs}
    for name, value in inputs.items():
        if name is not None and name.startswith(("cache_k.", "cache_v.")):
            value.type = ir.TensorType(_TYPES[form])  # twins share the old type, so it must not change
            for use in value.uses():
                if use.node.domain != contract.DOMAIN or use.node.op_type not in _INPUTS:
                    raise ExportError(
                        f"{use.node.op_type} reads {name}, which a cache of {form} does not allow"
                    )
    if form == "int8":
        for node in model.graph:
            if node.domain == contract.DOMAIN and node.op_type in _INPUTS:
                _give_scales(model.graph, node)
        for name, value in inputs.items():
            if not value.uses() and name is not None and name.startswith(("cache_k.", "cache_v.")):
                _scales_of(model.graph, value)
    append_functions(model)
    return model


def _give_scales(graph: ir.Graph, node: ir.Node) -> None:
    """Two more inputs of the graph, for the scales of this layer's keys and values."""
    order = _INPUTS[node.op_type]
    node.resize_inputs(len(order))
    for side in ("k", "v"):
        cache = node.inputs[order.index(f"cache_{side}")]
        if cache is None or cache.name is None or cache.shape is None:
            raise ExportError(f"a {node.op_type} has no cache of its own")
        node.replace_input_with(order.index(f"{side}_scales"), _scales_of(graph, cache))


def _scales_of(graph: ir.Graph, cache: ir.Value) -> ir.Value:
    """The input with a scale for each head and row of an input of keys or values, new if none asked for it yet."""
    assert cache.name is not None
    assert cache.shape is not None
    name = cache.name.removeprefix("cache_").replace(".", "_scales.")
    known = next((value for value in graph.inputs if value.name == name), None)
    if known is not None:
        return known
    scales = ir.val(name, ir.DataType.FLOAT, ir.Shape(list(cache.shape)[:2]))
    graph.inputs.append(scales)
    return scales

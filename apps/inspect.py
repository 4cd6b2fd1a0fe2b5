"""`paceline inspect`: what a bundle holds, read from its manifest without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.options import BundleFlag, JsonFlag
from paceline.printable import printable, say_json

if TYPE_CHECKING:
    from paceline.runtime.bundle.bundle import Bundle
    from paceline.runtime.manifest import Manifest, Part
    from paceline.runtime.model.device import Kernels


def inspect(*, bundle: BundleFlag = None, as_json: JsonFlag = False) -> None:
    """Show a bundle's parts, sizes, files, licence and measured acceptance; every file is verified."""
    from paceline.embedded import embedded_bundle
    from paceline.runtime.bundle.bundle import open_bundle

    opened = open_bundle(embedded_bundle() if bundle is None else bundle, reread=True)
    if as_json:
        say_json(as_dict(opened))
    else:
        print(*(printable(line).replace("\n", " ") for line in lines(opened)), sep="\n")


def as_dict(bundle: Bundle) -> dict[str, Any]:
    """The object of `inspect --json`."""
    import msgspec

    from paceline.runtime.bundle.precision import cache_form
    from paceline.runtime.model.device import kernels
    from paceline.runtime.model.weights import huge_pages

    manifest = bundle.manifest
    return {
        "folder": str(bundle.folder),
        "name": manifest.name,
        "licence": manifest.licence,
        "schema": manifest.schema,
        "profile": manifest.profile,
        "kernels": kernels().in_use,
        "huge_pages": huge_pages(),
        "producer": manifest.producer,
        "has_template": has_template(bundle.folder),
        "cache": {"default": cache_form(manifest, None), "bytes_per_token": _row_bytes(manifest.target)},
        "target": msgspec.to_builtins(manifest.target),
        "drafters": msgspec.to_builtins(manifest.drafters),
        "acceptance": manifest.acceptance,
        "generation": msgspec.to_builtins(bundle.generation),
        "bytes": sum(f.bytes for f in manifest.files.values()),
        "files": msgspec.to_builtins(manifest.files),
    }


def has_template(folder: Path) -> bool:
    """Whether the bundle can chat."""
    return (folder / "chat_template.jinja").is_file()


def lines(bundle: Bundle) -> list[str]:
    """The same as text."""
    from paceline.runtime.model.device import kernels

    manifest = bundle.manifest
    total = sum(f.bytes for f in manifest.files.values())
    shown = [
        f"{manifest.name} ({bundle.folder})",
        f"  licence    {manifest.licence}",
        f"  size       {size(total)} in {len(manifest.files)} files, all verified",
        f"  profile    {manifest.profile}, schema {manifest.schema}",
        *_folded("kernels", _kernels(kernels(), manifest.target)),
        *_folded("made with", ", ".join(f"{k} {v}" for k, v in manifest.producer.items())),
        *_folded("cache", _cache(manifest)),
        f"  chat       {'has a template' if has_template(bundle.folder) else 'no template, continues text'}",
        *_part_lines("target", manifest.target),
    ]
    for name, part in manifest.drafters.items():
        shown += _part_lines(f"drafter {name}", part)
    if manifest.acceptance:
        shown.append("tokens per round, measured ('paceline bench --record')")
        shown += [f"  {name:<10} {value:.2f}" for name, value in manifest.acceptance.items()]
    shown.append("files")
    shown += [f"  {size(file.bytes):>9}  {file.sha256[:12]}  {name}" for name, file in manifest.files.items()]
    return shown


def _row_bytes(part: Part) -> dict[str, int]:
    """Bytes of a token's keys and values, by the forms of the cache that there are graphs for."""
    from paceline.runtime.bundle.precision import row_bytes

    return row_bytes(part)


def _cache(manifest: Manifest) -> str:
    from paceline.runtime.bundle.precision import cache_form

    usual, forms = cache_form(manifest, None), _row_bytes(manifest.target)
    others = ", ".join(f"{form} {size(each)}" for form, each in forms.items() if form != usual)
    shown = f"{usual} by default, {size(forms[usual])} a token"
    return f"{shown}; with --cache {others}" if others else f"{shown}; export again for fp16 and int8"


def _kernels(own: Kernels, target: Part) -> str:
    if own.level is None or target.layout is not None:
        return own.in_use
    return f"{own.in_use} for attention; products are ONNX Runtime's: export again for ours"


def _folded(name: str, text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 78, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13)


def _part_lines(title: str, part: Part) -> list[str]:
    weights = {"none": "16-bit weights, computed in fp32"}.get(
        part.quant, f"{part.quant} weights" + (f", block {part.block}" if part.block else "")
    )
    lines = [
        title,
        f"  model      {part.architecture}, {count(part.parameters)} parameters, {weights}",
        f"  shape      {part.layers} layers of {part.hidden}, vocabulary {part.vocab}, "
        f"{part.kv_heads} key/value heads of {part.head_dim}",
        f"  context    {part.context}" + (f", sliding window {part.window}" if part.window else ""),
    ]
    if part.nodes_per_layer:
        lines.append(f"  graph      {part.graph}, {part.nodes_per_layer:.1f} nodes a layer")
    if part.layout is not None:
        lines.append(f"  packed     {_packed(part)}")
    if part.taps:
        lines.append(f"  taps       {', '.join(part.taps)}")
    return lines


def _packed(part: Part) -> str:
    """How the weights are laid out, and where the kernels read them."""
    from paceline.runtime.model.device import kernels
    from paceline.runtime.model.weights import huge_pages

    total = size(sum(weight.bytes for weight in part.weights.values()))
    place = f"{total} in huge pages when loaded" if kernels().level and huge_pages() else "left in their file"
    return f"layout {part.layout}, {place}" if part.weights else f"layout {part.layout}"


def size(number: int) -> str:
    """Bytes for people, decimal."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"


def count(number: int) -> str:
    """A count for people."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)

"""`paceline inspect`: what a bundle holds, read from its manifest without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.adapt_text import adapter_words, learnt, learnt_words
from paceline.flags import with_flags
from paceline.options import BundleArgument, BundleFlag, JsonFlag, Loading
from paceline.printable import printable, say_json
from paceline.sampling_text import sampling_words
from paceline.store import chosen_bundle

if TYPE_CHECKING:
    from paceline.runtime.bundle.bundle import Bundle
    from paceline.runtime.manifest import Manifest, Part
    from paceline.runtime.model.kernels import Kernels
    from paceline.runtime.part import Split


@with_flags
def inspect(
    *,
    folder: BundleArgument = None,
    bundle: BundleFlag = None,
    drafter_bundle: Annotated[
        Path | None,
        typer.Option(
            "--drafter-bundle", metavar="BUNDLE", help="Show how its models can draft for this bundle, too."
        ),
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="List the files with their digests, too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a bundle's parts, sizes, licence and defaults, and what was measured of it; every file is verified."""
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.bundle.guests import with_guest

    opened = open_bundle(Path(chosen_bundle(Loading(bundle).of(folder).bundle)), reread=True)
    if drafter_bundle is not None:
        opened = with_guest(opened, open_bundle(Path(chosen_bundle(drafter_bundle)), reread=True))
    if as_json:
        say_json(as_dict(opened))
    else:
        print(*(printable(line).replace("\n", " ") for line in lines(opened, files)), sep="\n")


def as_dict(bundle: Bundle) -> dict[str, Any]:
    """The object of `inspect --json`."""
    import msgspec

    from paceline.runtime.model.kernels import kernels
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
        "cache": {"default": _usual_cache(manifest), "bytes_per_token": _row_bytes(manifest.target)},
        "target": msgspec.to_builtins(manifest.target),
        "drafters": msgspec.to_builtins(manifest.drafters),
        "learnt": {name: learnt(manifest, part) for name, part in manifest.drafters.items() if part.training},
        "acceptance": manifest.acceptance,
        "generation": msgspec.to_builtins(bundle.generation),
        "bytes": sum(f.bytes for f in manifest.files.values()),
        "files": msgspec.to_builtins(manifest.files),
    }


def has_template(folder: Path) -> bool:
    """Whether the bundle can chat."""
    return (folder / "chat_template.jinja").is_file()


def lines(bundle: Bundle, files: bool = False) -> list[str]:
    """The same as text."""
    from paceline.runtime.bundle.generation import sampling_of
    from paceline.runtime.model.kernels import kernels

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
        *_folded("chat", _chat(bundle)),
        *_folded("choosing", sampling_words(sampling_of(bundle.generation))),
        *_folded("ends at", _ends(bundle)),
        *_part_lines("target", manifest.target, manifest),
    ]
    for name, part in manifest.drafters.items():
        shown += _part_lines(f"{_KINDS.get(part.kind, 'drafter')} {name}", part, manifest)
        if part.tokenizer is not None:
            shown += _folded("tokens", _overlap(bundle, part.tokenizer))
        if part.training is not None:
            shown += _folded("learnt", learnt_words(manifest, part))
    if manifest.acceptance:
        skips = any(part.kind == "skip" for part in manifest.drafters.values())
        searched = "; of a skip, until then, by its search" if skips else ""
        shown.append(f"tokens per round, measured ('paceline bench --record'{searched})")
        shown += [f"  {name:<10} {value:.2f}" for name, value in manifest.acceptance.items()]
    else:
        shown.append("tokens per round: not measured ('paceline bench --record' does)")
    if not files:
        return shown
    shown.append("files")
    shown += [f"  {size(file.bytes):>9}  {file.sha256[:12]}  {name}" for name, file in manifest.files.items()]
    return shown


_KINDS = {"head": "head", "skip": "skip", "exit": "exit"}
"""What parts are called; all others are drafters."""
_FORMATS = {
    "<|im_start|>": "ChatML",
    "<|start_header_id|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "[INST]": "Mistral",
    "<|user|>": "user and assistant tokens",
}


def _chat(bundle: Bundle) -> str:
    """What the chat template writes and takes."""
    if not has_template(bundle.folder):
        return "no template, continues text"
    template = (bundle.folder / "chat_template.jinja").read_text(encoding="utf-8")
    form = next((name for mark, name in _FORMATS.items() if mark in template), "of its own kind")
    takes = {"tools (--tools)": "tools", "--think": "enable_thinking"}
    known = [what for what, word in takes.items() if word in template]
    return f"template: {form}" + (f"; takes {', '.join(known)}" if known else "")


def _ends(bundle: Bundle) -> str:
    """The tokens that end an answer."""
    from paceline.runtime.text.text import Text

    ids = bundle.generation.eos_ids
    if not ids:
        return "nothing but --max-tokens, --stop or a full context"
    text = Text.load(bundle.folder)
    return ", ".join(f"{text.token(token)} ({token})" for token in ids)


def _row_bytes(part: Part) -> dict[str, int]:
    """Bytes of a token's keys and values, by the forms of the cache that there are graphs for."""
    from paceline.runtime.bundle.precision import row_bytes

    return row_bytes(part)


def _usual_cache(manifest: Manifest) -> str:
    """The form of the cache where the CPU runs the target, and nobody asks for another."""
    import msgspec

    from paceline.runtime.bundle.precision import cache_form

    free = msgspec.structs.replace(manifest.target, static=None)
    return cache_form(msgspec.structs.replace(manifest, target=free), None)


def _cache(manifest: Manifest) -> str:
    usual, forms = _usual_cache(manifest), _row_bytes(manifest.target)
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


def _part_lines(title: str, part: Part, manifest: Manifest) -> list[str]:
    kept = {"none": "16-bit weights, computed in fp32", "keep": "weights in the blocks of a GGUF file"}
    weights = kept.get(part.quant, f"{part.quant} weights" + (f", block {part.block}" if part.block else ""))
    lines = [
        title,
        f"  model      {part.architecture}, {count(part.parameters)} parameters, {weights}",
        f"  on disk    {_on_disk(part, manifest)}",
        f"  shape      {part.layers} layers of {part.hidden}, vocabulary {part.vocab}, "
        f"{part.kv_heads} key/value heads of {part.head_dim}",
        f"  context    {part.context}" + (f", sliding window {part.window}" if part.window else ""),
    ]
    if part.deepest:
        lines += _folded("drafts", _drafts(part, manifest.target))
    if part.exits:
        lines += _folded("drafts", _leaves(part, manifest.target))
    if part.without:
        lines += _folded("without", f"{len(part.without)} blocks: {', '.join(part.without)}")
    if part.nodes_per_layer:
        lines.append(f"  graph      {part.graph}, {part.nodes_per_layer:.1f} nodes a layer")
    if (sizes := part.static) is not None:
        lines += _folded(
            "static",
            f"{_listed(sizes.rows)} rows and prompts of {sizes.prompt}, over {_listed(sizes.contexts)} of the cache, "
            f"in {sizes.type}",
        )
    if part.layout is not None and not part.borrows:
        lines.append(f"  packed     {_packed(part)}")
    if part.training is not None:
        lines += _folded("learns", adapter_words(part, manifest))
    if part.taps:
        lines.append(f"  taps       {', '.join(part.taps)}")
    if part.split is not None:
        lines += _folded("halves", _halves(part.split, part.vocab))
    if part.accepted:
        shares = ", ".join(f"{share:.0%}" for share in part.accepted)
        measured = "by depth, as its search" if part.without else "by depth, as its training"
        measured = "after the best layer, as a sample text" if part.exits and part.borrows else measured
        lines += _folded("accepted", f"{shares} of drafted tokens {measured} measured")
    return lines


def _halves(split: Split, vocab: int) -> str:
    """Where a target of so many tokens is split, and how well its first half knows what it will say."""
    found = split.recall.get(split.layer, [])
    shares = ", ".join(f"{found[rank - 1]:.0%} of {rank}" for rank in (1, 2, 4, 8) if rank <= len(found))
    known = (
        f", the choice is among {shares} as its training measured" if shares else ", through no trained exit"
    )
    of = "" if split.vocab is None else f" of {split.vocab} of {vocab}"
    return f"split behind layer {split.layer}, where {split.named} tokens{of} are named early{known}"


def _listed(numbers: list[int]) -> str:
    *fewer, last = map(str, numbers)
    return f"{', '.join(fewer)} and {last}" if fewer else last


def _overlap(bundle: Bundle, tokenizer: str) -> str:
    """What the vocabulary of a draft model shares with the target's."""
    from paceline.runtime.text.text import Text
    from paceline.runtime.translation.mapping import map_vocabularies, overlap
    from paceline.runtime.translation.spelling import Spelling

    draft = Spelling.of(Text.load(bundle.path(tokenizer).parent))
    target = Spelling.of(Text.load(bundle.folder))
    return overlap(draft, target, map_vocabularies(draft, target)).words()


def _drafts(part: Part, target: Part) -> str:
    """How a head or a draft model drafts in one call, how deep, and from what."""
    if part.streams:
        return f"1 to {part.deepest} tokens in one pass"
    *fewer, deepest = map(str, sorted(part.drafts))
    depths = f"{', '.join(fewer)} or {deepest}" if fewer else deepest
    if part.kind != "head":
        return f"{depths} tokens in one call"
    return (
        f"{depths} levels in one call ({part.method or 'of its own kind'}), {part.vocab} of {target.vocab} tokens, "
        f"from {', '.join(part.reads)} of the target"
    )


def _leaves(part: Part, target: Part) -> str:
    """After which layers of the target an exit says a token, and through what."""
    *fewer, last = map(str, sorted(part.exits))
    layers = f"one of the layers {', '.join(fewer)} and {last}" if fewer else f"layer {last}"
    through = (
        "its norm and LM head"
        if part.borrows
        else f"a block of attention, {part.vocab} of {target.vocab} tokens"
    )
    return (
        f"a token a pass, with the target up to {layers} and {through} ({part.method or 'of its own kind'})"
    )


def part_bytes(part: Part, manifest: Manifest) -> int:
    """Bytes of a part's files."""
    borrowed = borrowed_graphs(part, manifest.target)
    own = sum(manifest.files[graph].bytes for graph in borrowed)
    if part.borrows:
        return own
    place = part.graph.rpartition("/")[0] + "/"
    others = {
        graph for other in manifest.drafters.values() for graph in borrowed_graphs(other, manifest.target)
    }
    files = manifest.files.items()
    return own + sum(file.bytes for name, file in files if name.startswith(place) and name not in others)


def borrowed_graphs(part: Part, target: Part) -> set[str]:
    """Of a part's graphs those that read the target's weights."""
    from paceline.runtime.part import first_layers

    early = [graph for layer in part.exits for graph in first_layers(target, part, layer).graphs]
    return {*early, *(part.graphs if part.borrows else ())}


def weight_bits(part: Part, manifest: Manifest) -> float:
    """Bits of a part's files for each weight, but for weights that are there twice: an exit's rows of the LM head, and
    what static graphs alone read."""
    twice = sum(manifest.files[path].bytes for path in part.stores[1:])
    return 8 * (part_bytes(part, manifest) - twice) / part.parameters


def _on_disk(part: Part, manifest: Manifest) -> str:
    """Bytes of a part, and what that is for each weight."""
    total = part_bytes(part, manifest)
    if part.borrows:
        return f"{size(total)}, over the target's weights"
    return f"{size(total)}, {weight_bits(part, manifest):.1f} bits a weight"


def _packed(part: Part) -> str:
    """How the weights are laid out, and where the kernels read them."""
    from paceline.runtime.model.kernels import kernels
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

"""A finished bundle gets a part that drafts with the target's own layers, some blocks left out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec
import onnx_ir as ir

from paceline.export.atomic import new_folder
from paceline.export.caches import write_cached_graphs
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.errors import ExportError
from paceline.export.report import Progress, Report, SkipReport, Stages, silent
from paceline.export.skips.blocks import Block, blocks_of, leave_out
from paceline.export.skips.early import check_shared
from paceline.export.skips.search import search, speed
from paceline.export.skips.wish import SkipWish
from paceline.export.skips.yardstick import LEVELS, Piece, Yardstick, accepted, agreement, round_tokens
from paceline.export.tapping import check_unadapted
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import Part
from paceline.runtime.model.graph import Graph
from paceline.runtime.part import Prices, made_of
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.text import Text

_PIECES, _HELD_OUT = 16, 4
"""Answers that are measured on, and of these every how many-th the search does not see."""
_ANSWER, _PROMPT = 48, 64
"""Tokens of an answer, and of a piece of a text that it goes on from."""
_LONGEST = 512
"""Tokens of a prompt."""
_FORMS = ("fp16", "int8")
"""Of a cache: a skip `x.fp16` would have the graph that a skip `x` has for such a cache."""
_TIMED = 30
"""Passes of each width of which the quickest counts."""


def add_skips(
    bundle: Path,
    wishes: Mapping[str, SkipWish],
    out: Path,
    *,
    threads: int,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Give a finished bundle such parts; it appears at `out`, of links to the same files where the disk has them.

    Raises ExportError for a model or a text that does not do, BundleError for a bundle that is damaged, ValueError for
    a wrong order, OSError as the disk does.
    """
    started = time.monotonic()
    for name, wish in wishes.items():
        if (form := name.rpartition(".")[2]) in _FORMS:
            raise ValueError(
                f"{name!r} ends as a graph for a cache of {form} does: choose another name for the skip"
            )
        if not 0 < wish.share < 1:
            raise ValueError(
                f"a share of {wish.share:g} leaves out nothing or all: use more than 0 and less than 1"
            )
    opened = open_for(bundle, wishes, out, force)
    old = opened.manifest
    check_unadapted(old.target, bundle)
    check_shared(old.target, bundle)
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        made = {
            name: _export_skip(name, wish, opened, work, threads, Stages(name, progress or silent))
            for name, wish in wishes.items()
        }
        graphs = {graph for report in made.values() for graph in report.part.graphs}
        files = new_files(work, {work / PurePosixPath(graph).parent for graph in graphs})
        manifest = finish(
            old,
            work,
            {path: file for path, file in files.items() if path in graphs},
            drafters={name: report.part for name, report in made.items()},
            acceptance={name: report.round_tokens for name, report in made.items()},
        )
    return dataclasses.replace(told(out, old, manifest, started), skips=made)


def _export_skip(
    name: str, wish: SkipWish, bundle: Bundle, work: Path, threads: int, stages: Stages
) -> SkipReport:
    target = bundle.manifest.target
    graph = ir.load(bundle.path(target.graph))
    blocks = blocks_of(graph, target.layers)
    free, share = _free(blocks, target.layers, wish.share, bundle.folder)
    yardstick = Yardstick(bundle, threads)
    with stages.time("reference") as done:
        pieces = _pieces(yardstick, _prompts(bundle, wish.text), done)
    held_out = pieces[_HELD_OUT - 1 :: _HELD_OUT]
    seen = [piece for number, piece in enumerate(pieces, 1) if number % _HELD_OUT]
    with stages.time("calibrate") as done:
        part, agreed = _searched(name, wish, bundle, yardstick, free, share, seen, done)
    with stages.time("write"):
        part = write_skip(graph, part, work)
    with stages.time("check"):
        right = yardstick.right(part, _opened(yardstick, part, work), held_out, LEVELS)
        shares, (price, row) = accepted(right), _prices(yardstick, part, work)
        part = msgspec.structs.replace(
            part,
            accepted=[round(share, 4) for share in shares],
            prices=Prices(draft=round(price, 4), row=round(row, 4)),
        )
    size = sum((work / path).stat().st_size for path in part.graphs)
    left = sum(block.bytes for block in blocks if block.name in part.without) / sum(b.bytes for b in blocks)
    depth, gain = speed(shares, price, row)
    tokens = max(round_tokens(right, LEVELS), 1.0)
    return SkipReport(part, size, left, agreed, tokens, price, row, depth, gain, stages.seconds)


def _free(blocks: Sequence[Block], layers: int, wished: float, folder: Path) -> tuple[list[Block], float]:
    """What may be left out, all but the first and the last layer, and the share of it that was wished of all."""
    free = [block for block in blocks if block.name.partition(".")[2] not in ("0", str(layers - 1))]
    if not free:
        raise ExportError(f"{folder}: a model of {layers} layers has none between the first and the last")
    share = wished * sum(block.bytes for block in blocks) / sum(block.bytes for block in free)
    if share >= 1:
        raise ExportError(
            f"{folder}: first and last layer stay, so only {wished / share:.0%} can be left out: "
            "ask for a smaller --skip-share"
        )
    return free, share


def _searched(
    name: str,
    wish: SkipWish,
    bundle: Bundle,
    yardstick: Yardstick,
    free: Sequence[Block],
    share: float,
    seen: Sequence[Piece],
    done: Callable[[float], None],
) -> tuple[Part, float]:
    """The part without the best set of free blocks that have this share, and how often it agrees on what was seen."""
    target = bundle.manifest.target
    over = ir.load(bundle.path(target.graph_for(yardstick.form)))

    def part_of(chosen: Sequence[int]) -> Part:
        return part_without(name, target, [free[number] for number in chosen])

    def score(chosen: tuple[int, ...]) -> float:
        part = part_of(chosen)
        raw = _bytes(leave_out(over, part.without, target.layers))
        return agreement(yardstick.right(part, yardstick.open(part, raw), seen, 1))

    found = search([block.bytes for block in free], share, score, wish.trials, wish.seed, done)
    return part_of(found.chosen), found.agreement


def _opened(yardstick: Yardstick, part: Part, work: Path) -> Graph:
    """Open the graphs of every form, each as it is written, and return the one that is measured."""
    forms: tuple[CacheFormat, ...] = ("fp32", *part.caches)
    graphs = {form: yardstick.open(part, (work / part.graph_for(form)).read_bytes()) for form in forms}
    return graphs[yardstick.form]


def write_skip(target: ir.Model, part: Part, work: Path) -> Part:
    """Write the graphs of a part into the folder of a bundle, beside the target's weights; returns it with their names.

    target: the finished graph over a cache of fp32.
    """
    twin, path = leave_out(target, part.without, part.layers), work / part.graph
    write_atomically(path, _bytes(twin), private=False)
    names, place = write_cached_graphs(twin, path), PurePosixPath(part.graph).parent
    return msgspec.structs.replace(part, caches={form: str(place / file) for form, file in names.items()})


def part_without(name: str, target: Part, chosen: Sequence[Block]) -> Part:
    """What the manifest says of the target without these blocks; its graphs for narrow caches are to be named."""
    share = sum(block.bytes for block in chosen) / max(
        sum(weight.bytes for weight in target.weights.values()), 1
    )
    return made_of(
        target,
        graph=str(PurePosixPath(target.graph).with_name(f"skip.{name}.onnx")),
        parameters=max(round(target.parameters * (1 - share)), 1),
        taps=[],
        caches={},
        kind="skip",
        without=[block.name for block in chosen],
        method="swift",
    )


def _prices(yardstick: Yardstick, part: Part, work: Path) -> tuple[float, float]:
    """What a pass of one row takes, and one row more to verify, in passes of the whole model: all timed in turn."""
    raw = (work / part.graph_for(yardstick.form)).read_bytes()
    target, skips, wide = yardstick.opened(), yardstick.opened(part, raw), 1 + LEVELS
    past, seconds = min(_PROMPT, part.context - wide), dict[str, float]()
    for _ in range(_TIMED):
        for what, model, rows in (("target", target, 1), ("skip", skips, 1), ("wide", target, wide)):
            begun = time.perf_counter()
            model.probe(rows, past)
            took = time.perf_counter() - begun
            seconds[what] = min(took, seconds.get(what, took))
    row = (seconds["wide"] / seconds["target"] - 1) / LEVELS
    return seconds["skip"] / seconds["target"], max(row, 0.0)


def _bytes(model: ir.Model) -> bytes:
    raw: bytes = ir.to_proto(model).SerializeToString()
    return raw


def _prompts(bundle: Bundle, text: str | Sequence[str]) -> list[list[int]]:
    """Token ids that answers are measured behind: prompts as a chat has them, or pieces of a text, evenly spread."""
    known = Text.load(bundle.folder, bundle.generation)
    most = min(_LONGEST, bundle.manifest.target.context - _ANSWER)
    if isinstance(text, str):
        ids = known.encode(text)
        length = min(_PROMPT, most, len(ids))
        starts = sorted({(len(ids) - length) * number // (_PIECES - 1) for number in range(_PIECES)})
        return [list(ids[at : at + length]) for at in starts if length > 1]
    template = ChatTemplate.load(bundle.folder, known)
    found = []
    for prompt in text:
        if template is None:
            ids = known.encode(prompt)
        else:
            ids = known.encode_marked(template.render([{"role": "user", "content": prompt}]))
        if 1 < len(ids) <= most:
            found.append(list(ids))
    return (
        [found[number * len(found) // _PIECES] for number in range(_PIECES)]
        if len(found) > _PIECES
        else found
    )


def _pieces(yardstick: Yardstick, prompts: Sequence[list[int]], done: Callable[[float], None]) -> list[Piece]:
    pieces = []
    for number, prompt in enumerate(prompts, 1):
        piece = yardstick.answer(prompt, _ANSWER)
        if piece is not None:
            pieces.append(piece)
        done(number / len(prompts))
    if len(pieces) < _HELD_OUT:
        raise ExportError(
            f"the model has answers to {len(pieces)} pieces of this text, too few to tell what it can do without: give "
            "a longer text, or more prompts"
        )
    return pieces

"""Draws when what ran: a page, a picture, or the trace event format that chrome://tracing and Perfetto open."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.plot import canvas, write
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.timeline import BESIDE, LOOP, TARGET, Span, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".html", ".png", ".svg", ".json")
_TRACKS = (TARGET, LOOP, BESIDE)
_COLOURS = {
    "prompt": "#9c755f",
    "verify": "#4e79a7",
    "keep": "#17becf",
    "draft": "#f28e2b",
    "judge": "#7f7f7f",
    "learn": "#b07aa1",
    "wait": "#e15759",
    "work": "#d4e6c8",
    "pass": "#59a14f",
}
_MARKS = {"hit": ("^", "#59a14f"), "miss": ("v", "#e15759"), "exit": ("|", "#000000")}
_SIGNS = {"^": "▲", "v": "▼", "|": "|"}
_MEANINGS = {
    TARGET: "track: passes of the model whose answer it is",
    LOOP: "track: what is done between these passes, on the thread that runs them",
    BESIDE: "track: another thread, which drafts while the target runs (--mirror)",
    "prompt": "the target reads the prompt",
    "verify": "the target scores what was drafted, in one pass",
    "keep": "rows of accepted tokens are moved into its cache",
    "draft": "the drafter proposes tokens",
    "judge": "which of them are accepted",
    "learn": "the drafter is told what became of them",
    "wait": "a draft pass that began beside the target has not ended yet",
    "work": "all that is done beside one pass of the target",
    "pass": "a pass of the draft model there",
    "hit": "the target said what was drafted beside it: the draft goes on from there",
    "miss": "it said something else: drafting begins anew",
    "exit": "the target's first layers say what may follow",
}
_ROUNDS = 16
"""Of which a picture shows: more cannot be told apart. A page shows all."""
_INCHES_A_ROUND, _WIDEST = 0.7, 200.0

Traces = Mapping[str, Timeline]
"""By the name of the drafter."""


def save(traces: Traces, title: str, file: Path) -> None:
    """Write what the file's suffix says. Raises OSError as the disk does."""
    if file.suffix == ".json":
        write_atomically(file, json.dumps(events(traces)).encode(), private=False)
    elif file.suffix == ".html":
        write_atomically(file, _page(traces, title).encode(), private=False)
    else:
        figure, panels = canvas(12, 0.5 + 1.5 * len(traces), len(traces))
        for axes, (name, timeline) in zip(panels, traces.items(), strict=True):
            _draw(axes, _cut(timeline.spans, _ROUNDS), name)
        panels[-1].set_xlabel("milliseconds", fontsize=8)
        drawn = [axes.get_legend_handles_labels() for axes in panels]
        signs = {label: handle for found in drawn for handle, label in zip(*found, strict=True)}
        named = [name for name in (*_COLOURS, *_MARKS) if name in signs]
        figure.legend(
            [signs[name] for name in named], named, loc="outside right center", frameon=False, fontsize=8
        )
        write(figure, title, file)


def events(traces: Traces) -> dict[str, object]:
    """The trace event format: a process for each drafter, a thread for each track, microseconds."""
    found: list[dict[str, object]] = []
    for pid, (name, timeline) in enumerate(traces.items(), 1):
        found.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})
        start = min((span.begin for span in timeline.spans), default=0.0)
        for tid, track in enumerate(_TRACKS, 1):
            found.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}})
        for span in timeline.spans:
            at = {
                "pid": pid,
                "tid": 1 + _TRACKS.index(span.track),
                "ts": round(1e6 * (span.begin - start), 1),
            }
            kind = {"ph": "i", "s": "t"} if _instant(span) else {"ph": "X"}
            lasts = {} if _instant(span) else {"dur": round(1e6 * (span.end - span.begin), 1)}
            found.append({"name": span.name, **kind, **at, **lasts, "args": dict(span.about)})
    return {"displayTimeUnit": "ms", "traceEvents": found}


def _instant(span: Span) -> bool:
    return span.name in _MARKS


def _cut(spans: Sequence[Span], rounds: int) -> list[Span]:
    """The spans of so many rounds from the middle of an answer."""
    begins = sorted(span.begin for span in spans if span.name == "verify")
    first = max((len(begins) - rounds) // 2, 0)
    shown = begins[first : first + rounds + 1]
    if not shown:
        return list(spans)
    end = shown[-1] if len(shown) > rounds else max(span.end for span in spans)
    return [span for span in spans if span.end >= shown[0] and span.begin < end]


def _draw(axes: Axes, spans: Sequence[Span], name: str) -> None:
    """A row a track; milliseconds from the first span on."""
    start = min((span.begin for span in spans), default=0.0)
    tracks = [track for track in _TRACKS if any(span.track == track for span in spans)]
    for row, track in enumerate(tracks):
        for kind, colour in _COLOURS.items():
            bars = [
                (1e3 * (span.begin - start), 1e3 * (span.end - span.begin))
                for span in spans
                if (span.track, span.name) == (track, kind)
            ]
            thick = 0.8 if kind == "work" else 0.6
            if bars:  # an edge, so that what takes no time to speak of is seen
                where, edge = (-row - thick / 2, thick), 0.0 if kind == "work" else 0.5
                axes.broken_barh(
                    bars, where, facecolors=colour, edgecolors=colour, linewidth=edge, label=kind
                )
        for kind, (marker, colour) in _MARKS.items():
            at = [1e3 * (span.begin - start) for span in spans if (span.track, span.name) == (track, kind)]
            if at:
                axes.plot(at, [0.42 - row] * len(at), marker, color=colour, markersize=5, label=kind)
    axes.set_yticks([-row for row in range(len(tracks))], tracks)
    axes.set_ylim(-len(tracks) + 0.4, 0.6)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_title(name, fontsize=8, loc="left")


def _page(traces: Traces, title: str) -> str:
    """One file without a program in it: a table of sums, and all rounds of each drafter to scroll along."""
    from matplotlib import pyplot

    pictures = []
    for name, timeline in traces.items():
        rounds = sum(span.name == "verify" for span in timeline.spans)
        figure, [axes] = canvas(min(3 + _INCHES_A_ROUND * rounds, _WIDEST), 1.9)
        _draw(axes, _cut(timeline.spans, rounds), name)
        axes.margins(x=0)
        axes.set_xlabel("milliseconds", fontsize=8)
        drawn = StringIO()
        figure.savefig(drawn, format="svg")
        pyplot.close(figure)
        pictures.append(f"<div>{drawn.getvalue()[drawn.getvalue().index('<svg') :]}</div>")
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in _sums(traces)
    )
    style = (
        "body{font-family:sans-serif}div{overflow-x:auto}td{padding:0 1em 0 0;text-align:right}td:first-child"
        "{text-align:left}dl{display:grid;grid-template-columns:max-content auto;gap:0 1em}dd{margin:0}"
    )
    head = f"<meta charset=utf-8><title>{escape(title.splitlines()[0])}</title><style>{style}</style>"
    said = "<br>".join(escape(line) for line in title.splitlines())
    return f"<!doctype html>{head}<p>{said}</p><table>{cells}</table>{_legend(traces)}{''.join(pictures)}\n"


def _legend(traces: Traces) -> str:
    """What is drawn, each name with its colour or sign and what it means."""
    shown = []
    for name, meaning in _MEANINGS.items():
        sign, colour = ("■", _COLOURS.get(name)) if name not in _MARKS else _MARKS[name]
        if any(name in (span.name, span.track) for timeline in traces.values() for span in timeline.spans):
            drawn = f'<span style="color:{colour}">{_SIGNS.get(sign, sign)}</span> ' if colour else ""
            shown.append(f"<dt>{drawn}{escape(name)}<dd>{escape(meaning)}")
    return f"<dl>{''.join(shown)}</dl>"


def _sums(traces: Traces) -> list[list[str]]:
    """Milliseconds by name of what ran, and how often, for each drafter; the names first."""
    names = [name for name in (*_COLOURS, *_MARKS) if any(_of(t, name) for t in traces.values())]
    table = [["milliseconds (times)", *names]]
    for drafter, timeline in traces.items():
        row = [drafter]
        for name in names:
            spans = _of(timeline, name)
            spent = 1e3 * sum(span.end - span.begin for span in spans)
            row.append(f"{len(spans)}" if name in _MARKS else f"{spent:.1f} ({len(spans)})")
        table.append(row)
    return table


def _of(timeline: Timeline, name: str) -> list[Span]:
    return [span for span in timeline.spans if span.name == name]

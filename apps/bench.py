"""`paceline bench`: every drafter against plain decoding, same prompts, same process."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.bench_facts import Facts
from paceline.bench_measure import AUTO, PLAIN, Measured, Question, measure
from paceline.bench_output import Showing, record
from paceline.bench_prompts import Task, built_in_tasks, read_tasks, spread
from paceline.bench_report import rows
from paceline.choosing import Choosing
from paceline.errors import INTERRUPTED
from paceline.flags import changed, with_flags
from paceline.options import Loading
from paceline.printable import printable, say_json
from paceline.terminal import columns, is_dumb, remark

if TYPE_CHECKING:
    from paceline.runtime.bundle.bundle import Bundle
    from paceline.runtime.session import Session


@dataclass(frozen=True, slots=True)
class Asking:
    """Who is asked what, and how often."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            show_default="a few requests for stories",
            help="JSONL with 'turns' (Spec-Bench) or 'prompt', or a text file with a prompt a line.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Take N prompts, evenly spaced over the file."),
    ] = None
    drafters: Annotated[
        str | None,
        typer.Option("--drafters", metavar="A,B,...", show_default="all", help="Join fused drafters by +."),
    ] = None
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Length of an answer at most.")
    ] = 128
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Go over the prompts N times.")
    ] = 1

    def tasks(self) -> list[Task]:
        """The prompts. Raises ValueError for a file that holds none."""
        return spread(built_in_tasks() if self.prompts is None else read_tasks(self.prompts), self.limit)

    def names(self, session: Session) -> list[str]:
        """The drafters, plain decoding left out. Raises ValueError for one that the bundle has not."""
        if self.drafters is None:
            names = ["auto"] if session.plan else [*session.drafter_names(), "auto"]
        else:
            names = [word.strip().replace("+", ",") for word in self.drafters.split(",")]
        names = [n for n in dict.fromkeys(names) if n != PLAIN]
        for name in names:
            session.set_drafter(name)
        return names

    def question(self, choosing: Choosing, bundle: Bundle) -> Question:
        """How everyone is asked."""
        sampling = choosing.sampling(bundle.generation)
        return Question(self.max_tokens, sampling, choosing.accept, choosing.seed or 0)


@with_flags
def bench(
    *,
    asking: Asking,
    perplexity: Annotated[
        Path | None,
        typer.Option("--perplexity", metavar="FILE", help="Only measure the perplexity on this text."),
    ] = None,
    showing: Showing,
    loading: Loading,
    choosing: Choosing,
) -> None:
    """Time every drafter against plain decoding, interleaved, and compare their answers.

    Ctrl-C ends it and shows what was measured until then.
    """
    if perplexity is not None:
        given = [*changed(asking), *changed(choosing), *showing.flags()]
        _perplexity(perplexity, loading, given, showing.printed == "json")
        return
    if showing.record and loading.drafter_bundle is not None:
        raise typer.BadParameter(
            "what the models of another bundle bring is not written into this one", param_hint="--record"
        )
    if loading.adapt == "on":
        _check_adapt(loading, showing.record)
    showing.check()
    tasks = asking.tasks()
    # A budget is planned for all that `auto` runs, and so is what drafts beside the target.
    planned_for = PLAIN if loading.memory is None and loading.mirror != "auto" else AUTO
    still = dataclasses.replace(loading, adapt="off")
    waiting = [still.load(planned_for)]
    bundle, context, device = waiting[0].bundle, waiting[0].context, waiting[0].device
    placed, mirror = waiting[0].stats.placed, waiting[0].stats.mirror
    names, question = asking.names(waiting[0]), asking.question(choosing, bundle)
    loading.say_unused(names or [PLAIN], bundle.manifest.drafters)
    learning = _learning(names, bundle) if loading.adapt == "on" else []

    def open_session(learns: bool) -> Session:
        if learns:
            return loading.load(planned_for)
        return waiting.pop() if waiting else still.load(planned_for)

    with _progress() as report:
        traced = showing.trace is not None
        measured = measure(open_session, tasks, names, question, asking.repeats, report, learning, traced)
    _check_measured(measured)
    found = rows(measured, list(dict.fromkeys(task.group for task in tasks)))
    where = "built in" if asking.prompts is None else str(asking.prompts)
    manifest = bundle.manifest
    facts = Facts(
        manifest.name, manifest.target.quant, loading, context, question, where, device, placed, mirror
    )
    showing.say(facts, measured, asking.repeats, found)
    showing.draw(facts, measured, learning, found)
    if measured.interrupted:
        asked = len({(run.task.name, run.repeat) for run in measured.runs})
        unrecorded = "; nothing was recorded" if showing.record else ""
        remark(f"stopped by Ctrl-C after {asked} of {len(tasks) * asking.repeats} prompts{unrecorded}")
        raise typer.Exit(INTERRUPTED)
    if showing.record:
        record(bundle, found)


def _check_measured(measured: Measured) -> None:
    """Raise ValueError, or Exit after Ctrl-C, where nobody has answered."""
    if measured.runs:
        return
    if measured.interrupted:
        remark("stopped before everybody had answered a prompt: nothing was measured")
        raise typer.Exit(INTERRUPTED)
    raise ValueError(f"no prompt could be answered: {measured.skipped[0][1]}")


def _check_adapt(loading: Loading, record: bool) -> None:
    if record:
        raise typer.BadParameter(
            "what a user's drafter learnt is not written into the bundle", param_hint="--record"
        )
    if loading.memory is not None:
        raise typer.BadParameter(
            "drafters that learn are compared with themselves, in sessions of their own: leave it or --adapt out",
            param_hint="--memory",
        )


def _learning(names: Sequence[str], bundle: Bundle) -> list[str]:
    """Those of the drafters that learn. Raises ValueError where none does."""
    from paceline.runtime.drafters.names import parse

    parts = bundle.manifest.drafters
    able = {name for name, part in parts.items() if part.training is not None}
    found = [
        name
        for name in names
        if able & ({word.part for word in parse(name, parts).words} if name != AUTO else able)
    ]
    if not found:
        raise ValueError(
            f"none of {', '.join(names)} can learn: name a draft model that was given adapters (paceline export "
            "BUNDLE OUT --adapt 8), or leave --adapt out"
        )
    return found


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """One line on stderr that is rewritten; nothing where stderr is no terminal."""
    live, begun = sys.stderr.isatty() and not is_dumb(), time.monotonic()

    def show(text: str) -> None:
        if live:
            text = printable(text)[: columns() - 1]
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def report(done: int, whole: int, text: str) -> None:
        left = (time.monotonic() - begun) * (whole - done) / done
        filled = _BAR * done // whole
        show(f"{'█' * filled}{'░' * (_BAR - filled)} {text}, about {_duration(left)} left")

    try:
        show("loading, and a few tokens from everybody to warm up")
        yield report
    finally:
        show("")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


_BAR = 16
"""Columns."""


def _perplexity(file: Path, loading: Loading, given: Sequence[str], as_json: bool) -> None:
    """given: flags that say who is asked, and how. Raises BadParameter for one that means nothing here."""
    from paceline.bench_perplexity import measure_perplexity

    if loading.memory is not None:
        raise typer.BadParameter("no budget is kept while a text is measured", param_hint="--memory")
    drafting = {"--drafter-bundle": loading.drafter_bundle is not None, "--adapt": loading.adapt == "on"}
    if unused := [*given, *(flag for flag, used in drafting.items() if used)]:
        raise typer.BadParameter("nobody is asked while a text is measured", param_hint=unused[0])
    found = measure_perplexity(loading, file)
    if as_json:
        say_json({"perplexity": found.value, "tokens": found.tokens, "window": found.window})
    else:
        print(f"perplexity {found.value:.4f} over {found.tokens} tokens in windows of {found.window}")

"""`paceline devices`: where graphs really run here, what passes of a bundle cost there, and why the rest does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.flags import with_flags
from paceline.options import LOADED, BundleFlag, JsonFlag
from paceline.printable import say, say_json
from paceline.store import chosen_bundle

if TYPE_CHECKING:
    from paceline.runtime.options import Options
    from paceline.runtime.probing.trying import Cost
    from paceline.runtime.probing.verdicts import Verdict


@with_flags
def devices(
    *,
    bundle: BundleFlag = None,
    provider_library: Annotated[str | None, LOADED["provider_library"]] = None,
    threads: Annotated[int | None, LOADED["threads"]] = None,
    again: Annotated[bool, typer.Option("--again", help="Try every device anew, whatever is known.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the devices that --device takes, each tried in a process of its own, and the kernels in use."""
    from paceline.runtime.model.ort import runtime_version
    from paceline.runtime.model.processors import default_threads
    from paceline.runtime.model.providers import add_library
    from paceline.runtime.options import Options
    from paceline.runtime.places import AUTO
    from paceline.runtime.probing.verdicts import Wanted, as_dict, verdicts
    from paceline.runtime.settle import opened

    version = runtime_version()
    own = None if provider_library is None else add_library(provider_library)
    wanted, options = Wanted(provider_library, again), None
    if bundle is not None:
        options = Options(
            chosen_bundle(bundle),
            device=AUTO,
            threads=threads or default_threads(),
            provider_library=provider_library,
        )
        # What is wrong with it is no device's fault.
        wanted = Wanted(provider_library, again, options, opened(options))
    if as_json:
        shown = [as_dict(verdict) for verdict in verdicts(wanted, own)]
        say_json({"onnxruntime": version, "devices": shown, "placed": _placed(options), **_here(threads)})
        return
    say(version)
    for verdict in verdicts(wanted, own):
        say(*_lines(verdict))
    say(*(f"auto       {why}" for why in _placed(options).values()), *_own_lines(threads))


def _placed(options: Options | None) -> Mapping[str, str]:
    """Where `--device auto` would put each part of a bundle, by what was just measured, and why."""
    from paceline.runtime.placement import settle

    return {} if options is None else settle(options)[1].reasons


def _lines(verdict: Verdict) -> list[str]:
    if not verdict.works:
        return [f"  {verdict.name:<12} -    {verdict.problem}"]
    named = f"  {verdict.name:<12} {verdict.kind:<4} {verdict.provider:<26} {verdict.detail}".rstrip()
    return [named, *_cost_lines(verdict.costs)]


def _cost_lines(costs: Mapping[str, Cost]) -> list[str]:
    return [
        f"    {part:<10} "
        f"{cost.problem or f'a token {1e3 * cost.one:.2f} ms, {cost.tokens} tokens {1e3 * cost.wide:.2f} ms'}"
        for part, cost in costs.items()
    ]


def _here(threads: int | None) -> dict[str, Any]:
    """The processor's own part of the answer. threads: that were asked for."""
    from paceline.runtime.model.kernels import kernels
    from paceline.runtime.model.processors import default_threads
    from paceline.runtime.model.weights import huge_pages

    own = kernels()
    return {
        "kernels": {"in_use": own.in_use, "level": own.level, "levels": list(own.levels)},
        "huge_pages": huge_pages(),
        "threads": threads or default_threads(),
    }


def _own_lines(threads: int | None) -> list[str]:
    from paceline.runtime.model.processors import physical_cores

    here = _here(threads)
    level = here["kernels"]["level"]
    lines = [f"kernels    {here['kernels']['in_use']}"]
    if level is not None:
        lines += [
            "           PACELINE_KERNELS takes none (ONNX function bodies) and, the slowest first,",
            f"           {', '.join(here['kernels']['levels'])}; the last one is taken unless it says otherwise",
        ]
    in_pages = level is not None and here["huge_pages"]
    usual = "one a core" if here["threads"] == physical_cores() else "what the processor quota leaves"
    why = "as --threads says" if threads else f"{usual}; change it with --threads"
    return [
        *lines,
        f"weights    {'packed ones in huge pages' if in_pages else 'mapped from their file'}",
        f"threads    {here['threads']} ({why})",
    ]

"""What a session is loaded with: a field for each choice, from which come the arguments of `load` and the flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_type_hints

from paceline.runtime.drafters.words import WITH_HEAD, WITH_MODEL, WITH_TARGET, WITHOUT_MODEL

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """What a choice is called in words. least, most: its range. unset: what None means.

    panel, short, metavar, kind: how the command line shows and reads it; kind is the type that is typed there.
    """

    help: str
    panel: Literal["Model", "Drafting"] = "Model"
    short: str | None = None
    metavar: str | None = None
    least: int | None = None
    most: int | None = None
    unset: str | None = None
    kind: Any = None


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one load. A new one is a field here; those with a Flag are flags of the command line too."""

    bundle: Annotated[
        str | Path | None,
        Flag(
            short="-b",
            metavar="BUNDLE",
            kind=Path | None,
            unset="the embedded storyteller",
            help="Folder made by 'paceline export', or a name of 'paceline list'.",
        ),
    ] = None
    _: KW_ONLY
    context: Annotated[
        int | None,
        Flag(
            short="-c",
            metavar="N",
            least=2,
            unset="the model's own",
            help="Tokens that prompt and answer may have together, 2 or more.",
        ),
    ] = None
    memory: Annotated[
        str | int | None,
        Flag(
            metavar="SIZE",
            kind=str | None,
            unset="as much as it takes",
            help="Keep the whole process below this, such as 900MB; see 'paceline plan'.",
        ),
    ] = None
    memory_scope: Literal["growth", "process"] = "growth"
    """Whether `memory` counts what the process grows from the call on, or all of it, as the command line does."""
    cache: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        Flag(
            unset="fp16, if the bundle has it",
            help="Keep the context in 32, 16 or 8 bits a number. int8 is the smallest; it changes some answers.",
        ),
    ] = None
    overflow: Annotated[
        Literal["stop", "slide"] | None,
        Flag(
            unset="stop; slide in a chat",
            help="When the context is full: stop, or slide on without the oldest part (in a chat: whole turns).",
        ),
    ] = None
    device: Annotated[
        str,
        Flag(
            metavar="NAME",
            help="See 'paceline devices'. auto, also of the next two: what is fastest by what was measured here.",
        ),
    ] = "cpu"
    device_draft: Annotated[
        str | None, Flag(metavar="NAME", unset="as --device", help="Device of the draft model.")
    ] = None
    device_heads: Annotated[
        str | None, Flag(metavar="NAME", unset="as --device-draft", help="Device of the draft head.")
    ] = None
    provider_library: Annotated[
        str | None,
        Flag(
            metavar="NAME=PATH",
            help="Let NAME be a device that this plugin library of ONNX Runtime runs. It runs with your rights.",
        ),
    ] = None
    profile: Annotated[
        Literal["auto", "static"],
        Flag(
            help="Which graphs run, of parts that have static ones: auto: those on accelerators; static: those on any "
            "device.",
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        Flag(
            short="-t",
            metavar="N",
            least=1,
            unset="one a core",
            help="Threads of the model, at most 4 a core.",
        ),
    ] = None
    drafter: Annotated[
        str,
        Flag(
            panel="Drafting",
            metavar="NAMES",
            help="auto: what is fastest at the moment; none: plain decoding; "
            f"{', '.join(WITH_MODEL)}: the bundle's small model; {', '.join(WITH_HEAD)}: its draft head; "
            f"{', '.join(WITH_TARGET)}: itself, with blocks left out; {', '.join(WITHOUT_MODEL)}: without a model. "
            "Several joined by commas are fused. Changes the speed, never the answer.",
        ),
    ] = "auto"
    drafter_bundle: Annotated[
        str | Path | None,
        Flag(
            panel="Drafting",
            metavar="BUNDLE",
            kind=Path | None,
            help="Let the models of another bundle draft, whatever their vocabulary.",
        ),
    ] = None
    suffix_store: Annotated[
        str | Path | None,
        Flag(
            panel="Drafting",
            metavar="FILE",
            kind=Path | None,
            help="Keep what the suffix drafter learnt in FILE and use it again next time.",
        ),
    ] = None
    adapt: Annotated[
        Literal["on", "off"],
        Flag(
            panel="Drafting",
            help="Let draft models learn from use, on this machine, where they can ('paceline export --adapt').",
        ),
    ] = "off"
    mirror: Annotated[
        Literal["on", "off", "auto"],
        Flag(
            panel="Drafting",
            help="Let a draft model or head go on while the target checks what it drafted, on a core of its own; auto: "
            "where that is faster by what passes cost here.",
        ),
    ] = "off"
    mirror_branches: Annotated[
        Literal["exit", "weight", "fan", "window"] | None,
        Flag(
            panel="Drafting",
            unset="exit where the bundle has a split, else weight",
            help="With --mirror: what is drafted there. exit: what the target's first layers say may follow; weight: "
            "what the draft model thinks likely; fan: as many corrections of each place (SSD); window: only that all "
            "is accepted (PEARL).",
        ),
    ] = None
    draft_depth: Annotated[
        int | None,
        Flag(
            panel="Drafting",
            metavar="N",
            least=1,
            most=1024,
            unset="by drafter",
            help="Draft at most N tokens ahead.",
        ),
    ] = None
    max_nodes: Annotated[
        int | None,
        Flag(
            panel="Drafting",
            metavar="N",
            least=1,
            most=1024,
            unset="16",
            help="Draft at most N tokens a round, over all branches.",
        ),
    ] = None
    tree: Annotated[
        Literal["dynamic", "static"],
        Flag(
            panel="Drafting",
            help="How a draft head branches: dynamic: as sure as it is; static: as its ranks came true.",
        ),
    ] = "dynamic"


def flags_of(options: type[Options]) -> dict[str, Flag]:
    """The choices that have a Flag, by the names of their fields."""
    hints = get_type_hints(options, include_extras=True)
    found = {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(options)}
    return {name: extra[0] for name, extra in found.items() if extra and isinstance(extra[0], Flag)}


def takes(made: Callable[P, Options]) -> Callable[[Callable[[Options], T]], Callable[P, T]]:
    """Give a function of some options the arguments that make them: checkers and editors see every one."""

    def spread(opened: Callable[[Options], T]) -> Callable[P, T]:
        @wraps(opened)
        def call(*arguments: P.args, **named: P.kwargs) -> T:
            return opened(made(*arguments, **named))

        hints, plain = get_type_hints(made), inspect.signature(made)
        arguments = [p.replace(annotation=hints[name]) for name, p in plain.parameters.items()]
        call.__signature__ = plain.replace(  # type: ignore[attr-defined]
            parameters=arguments, return_annotation=opened.__annotations__["return"]
        )
        return call

    return spread

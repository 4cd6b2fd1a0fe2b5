"""Lets commands share groups of flags: a dataclass parameter becomes one flag a field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from paceline.runtime.options import Flag
from paceline.store import offered_bundles


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` a signature in which every dataclass parameter is spread into its fields.

    The fields' annotations are typer's; a field without default would be a required flag.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _flags_of(groups[name])
        else:
            hint = _typed(name, hints[name]) if hasattr(hints[name], "__metadata__") else hints[name]
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        built = {
            name: group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group) if f.name in values})
            for name, group in groups.items()
        }
        command(**values, **built)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread


def _flags_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    left_out = getattr(group, "elsewhere", ())
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else (inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default),
            annotation=_typed(field.name, hints[field.name]),
        )
        for field in dataclasses.fields(group)
        if field.name not in left_out and hasattr(hints[field.name], "__metadata__")
    ]


def _typed(name: str, hint: Any) -> Any:
    """An annotation as typer understands it: a choice of `load` says in its own words what its flag is."""
    flag = hint.__metadata__[0]
    kind, option = hint.__origin__, flag
    if isinstance(flag, Flag):
        kind, option = flag.kind or kind, typers(name, flag)
    if kind in (Path, Path | None):
        option = copy(option)
        option.click_type = _NamedPath(path_type=Path)
    return Annotated[kind, option]


_TyperPath: Any = type(typer.main.get_click_type(annotation=Path, parameter_info=typer.Option()))


class _NamedPath(_TyperPath):  # type: ignore[misc]
    """A path that has a name: an empty one, of a variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("an empty text is no path: name one", param, ctx)
        return super().convert(value, param, ctx)


def typers(name: str, flag: Flag) -> typer.models.OptionInfo:
    """A choice of `load` as a flag of the command line."""
    names = [f"--{name.replace('_', '-')}"]
    option: typer.models.OptionInfo = typer.Option(
        *([flag.short, *names] if flag.short else names),
        metavar=flag.metavar,
        min=flag.least,
        max=flag.most,
        show_default=flag.unset or True,
        autocompletion=offered_bundles if name == "bundle" else None,
        rich_help_panel=flag.panel,
        help=flag.help,
    )
    return option


def changed(group: Any) -> list[str]:
    """The flags of a group that were given another value than their default."""
    return [
        f"--{flag.name.replace('_', '-')}"
        for flag in _flags_of(type(group))
        if getattr(group, flag.name) != flag.default
    ]

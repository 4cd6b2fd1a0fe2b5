"""`paceline list` and `paceline rm`: the models that can be named."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.embedded import NAME as EMBEDDED
from paceline.inspect import size, weight_bits
from paceline.options import JsonFlag
from paceline.printable import say, say_json
from paceline.store import Model, check_name, models, models_folder, names, near, unfinished
from paceline.terminal import remark

if TYPE_CHECKING:
    from paceline.runtime.manifest import Manifest

_HEAD = ("NAME", "SIZE", "FORMAT", "CONTEXT", "PULLED", "SOURCE")


def list_models(*, as_json: JsonFlag = False) -> None:
    """List the models that -b takes by name: pulled ones, and the one that ships inside the package."""
    found, waiting = list(models()), unfinished()
    if as_json:
        say_json(
            {
                "folder": str(models_folder()),
                "models": [as_dict(model) for model in found],
                "unfinished": [{"name": name, "bytes": held} for name, held in waiting.items()],
            }
        )
        return
    rows = [_HEAD, *(_row(model) for model in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for model in found:
        if model.manifest is None:
            remark(f"{model.name} cannot be used: {model.fault}")
    for name, held in waiting.items():
        remark(
            f"{name} is not complete, {size(held)} of it are there: pull it again to go on, or 'paceline rm {name}'"
        )


def _row(model: Model) -> tuple[str, ...]:
    source = "the package" if model.name == EMBEDDED else "unknown"
    pulled = ""
    if model.source is not None:
        source, pulled = model.source.words, model.source.pulled[:10]
    if model.manifest is None:
        return model.name, size(model.bytes), "damaged", "", pulled, source
    target = model.manifest.target
    return (
        model.name,
        size(model.bytes),
        f"{target.quant}, {bits(model.manifest):.1f} bits",
        str(target.context),
        pulled,
        source,
    )


def bits(manifest: Manifest) -> float:
    """Bits on the disk for each weight of the target."""
    return weight_bits(manifest.target, manifest)


def as_dict(model: Model) -> dict[str, Any]:
    """The object of a model in JSON."""
    import msgspec

    found: dict[str, Any] = {
        "name": model.name,
        "folder": str(model.folder),
        "bytes": model.bytes,
        "source": None if model.source is None else msgspec.to_builtins(model.source),
    }
    if model.manifest is None:
        return found | {"fault": model.fault}
    target = model.manifest.target
    return found | {
        "title": model.manifest.name,
        "licence": model.manifest.licence,
        "architecture": target.architecture,
        "parameters": target.parameters,
        "quant": target.quant,
        "block": target.block,
        "bits_per_weight": round(bits(model.manifest), 2),
        "context": target.context,
        "drafters": list(model.manifest.drafters),
    }


def offered_models(incomplete: str) -> list[str]:
    """What Tab offers where something is removed."""
    return [name for name in sorted({*names(), *unfinished()}) if name.startswith(incomplete)]


def remove_models(
    *,
    wanted: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            show_default=False,
            autocompletion=offered_models,
            help="Names of 'paceline list'.",
        ),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Remove pulled models from the disk, and what is there of unfinished ones."""
    from paceline.pulling import remove

    there = {*names(), *unfinished()}
    for name in wanted:
        if check_name(name) not in there:
            meant = [known for known in near(name) if known in there]
            raise ValueError(
                f"there is no model {name}"
                + (
                    f": did you mean {' or '.join(meant)}?"
                    if meant
                    else "; 'paceline list' shows which there are"
                )
            )
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("nobody can be asked here: add --yes", param_hint="NAME...")
        if not typer.confirm(f"Remove {', '.join(wanted)}?", err=True):
            raise typer.Exit(1)
    for name in dict.fromkeys(wanted):
        say(f"removed {name}, {size(remove(name))} freed")

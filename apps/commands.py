"""The commands and what they are called."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline.bench import bench
from paceline.chat import chat
from paceline.devices import devices
from paceline.exporting import export
from paceline.inspect import inspect
from paceline.plan import plan
from paceline.run import run
from paceline.train import train

app = typer.Typer(
    name="paceline",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: [bold]paceline run 'Tell me a story about a dog and a red ball.'[/bold]",
)
app.command()(run)
app.command()(chat)
app.command()(export)
app.command()(bench)
app.command()(plan)
app.command()(inspect)
app.command()(devices)
app.add_typer(train, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        from paceline import __version__

        print(f"paceline {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def paceline(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Run language models faster than plain decoding, with the same output."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def invoke(arguments: list[str]) -> None:
    """Parse and run one command line; errors and exits are raised."""
    # Not `app(...)`: that one prints usage errors over several lines and handles a closed pipe by itself.
    command = typer.main.get_command(app)
    with command.make_context("paceline", arguments) as context:
        command.invoke(context)

"""The commands and what they are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from paceline.bench import bench
from paceline.chat import chat
from paceline.devices import devices
from paceline.exporting import export
from paceline.inspect import inspect
from paceline.listing import list_models, remove_models
from paceline.options import STATS_FULL
from paceline.plan import plan
from paceline.pull import pull
from paceline.run import run
from paceline.terminal import NoColourFlag
from paceline.train import train
from paceline.train_drafter import drafter
from paceline.train_exit import exit_command
from paceline.train_head import head

NAME = "paceline"
app = typer.Typer(
    name=NAME,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: [bold]paceline run 'Tell me a story about a dog and a red ball.'[/bold]",
)


def _examples(*lines: str) -> str:
    """What stands below a command's help."""
    # "\b" keeps typer from joining the lines.
    return "\n".join(["\b", "Examples:", *(f"  [bold]{line}[/bold]" for line in lines)])


app.command(
    epilog=_examples(
        "paceline run 'Tell me a story about a dog.'",
        "paceline run -b my-bundle -n 200 --temp 0.7 -f question.txt",
        "paceline run --raw 'Once upon a time' --stats",
    )
)(run)
app.command(
    epilog=_examples(
        "paceline chat",
        "paceline chat my-bundle -s 'Answer in one sentence.'",
        "printf 'Tell me a story.\\n' | paceline chat",
    )
)(chat)
app.command(
    epilog=_examples(
        "paceline export Qwen/Qwen2.5-0.5B-Instruct my-bundle --quant int8",
        "paceline export ./model my-bundle --quant int4 --drafter small=./small-model",
    )
)(export)
app.command(
    epilog=_examples(
        "paceline pull OWNER/REPO --name small",
        "paceline pull OWNER/REPO/int4@v1.0",
        "paceline pull OWNER/REPO --file model.Q4_K_M.gguf",
    )
)(pull)
app.command("list", epilog=_examples("paceline list"))(list_models)
app.command("rm", epilog=_examples("paceline rm small"))(remove_models)
app.command(
    epilog=_examples(
        "paceline bench",
        "paceline bench -b my-bundle --drafters chain,lookup+recycle --plot ratios.png",
        "paceline bench --format md",
    )
)(bench)
app.command(epilog=_examples("paceline plan", "paceline plan --memory 900MB -b my-bundle"))(plan)
app.command(epilog=_examples("paceline inspect", "paceline inspect my-bundle --files"))(inspect)
app.command(epilog=_examples("paceline devices"))(devices)
train.command(
    epilog=_examples(
        "paceline train head --method eagle3 --target bundle --prompts asked.jsonl my-head",
    )
)(head)
train.command(
    epilog=_examples(
        "paceline train drafter --target bundle --prompts asked.jsonl my-drafter",
    )
)(drafter)
train.command(
    "exit",
    epilog=_examples("paceline train exit --target bundle --prompts asked.jsonl my-exit"),
)(exit_command)
app.add_typer(train, name="train")


@app.command("help", hidden=True)
def show_help(
    context: typer.Context, words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]")] = None
) -> None:
    """The same as --help, also of a command."""
    invoke([*(words or []), "--help"])


@app.command("version", hidden=True)
def show_version() -> None:
    """Print the version."""
    from paceline import __version__

    print(f"{NAME} {__version__}")


def _print_version(wanted: bool) -> None:
    if wanted:
        show_version()
        raise typer.Exit


@app.callback(invoke_without_command=True)
def paceline(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("-V", "--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
    no_color: NoColourFlag = False,
) -> None:
    """Run language models faster than plain decoding, with the same output."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def invoke(arguments: Sequence[str]) -> None:
    """Parse and run one command line; errors and exits are raised."""
    if f"_{NAME.upper()}_COMPLETE" in os.environ:  # a shell that asks what Tab may offer
        app(prog_name=NAME)
    # Not `app(...)`: that one prints usage errors over several lines and handles a closed pipe by itself.
    command = typer.main.get_command(app)
    with command.make_context(NAME, _with_full_statistics(arguments)) as context:
        command.invoke(context)


def _with_full_statistics(arguments: Sequence[str]) -> list[str]:
    """`--stats full` as the one flag that it is."""
    flags = list(arguments)
    end = flags.index("--") if "--" in flags else len(flags)
    flags[:end] = [STATS_FULL if flag == "--stats=full" else flag for flag in flags[:end]]
    for at in range(end - 2, -1, -1):
        if flags[at : at + 2] == ["--stats", "full"]:
            flags[at : at + 2] = [STATS_FULL]
    return flags

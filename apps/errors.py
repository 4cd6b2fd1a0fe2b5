"""One line for every failure: what went wrong and what to do, never a traceback."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import cast

import typer

from paceline.interrupts import interrupted
from paceline.main import STDOUT
from paceline.memory.errors import Error
from paceline.printable import printable
from paceline.terminal import fitted

_EXTRAS = {
    "gguf": "gguf",
    "torch": "export",
    "transformers": "export",
    "onnx": "gguf",
    "onnxscript": "gguf",
    "onnx_ir": "gguf",
    "optimum": "export",
    "safetensors": "export",
    "huggingface_hub": "",
    "matplotlib": "plot",
    "onnxruntime": "cpu",
}
"""What to install for a module; "" is a package that the usual ones bring, so that nothing else is missing."""
_TORCH = "https://download.pytorch.org/whl/cpu"
"""Where torch comes without CUDA."""
_PLAINER = (
    (r"is not a valid int(?:eger)?(?: range)?\.$", "is no whole number"),
    (r"is not a valid float(?: range)?\.$", "is no number"),
    (r"(\S+) is not in the range x>=(\S+)\.$", r"it must be \2 or more, not \1"),
    (r"(\S+) is not in the range x<=(\S+)\.$", r"it must be \2 or less, not \1"),
    (r"(\S+) is not in the range (\S+)<=x<=(\S+)\.$", r"it must be from \2 to \3, not \1"),
)
"""What the library says of numbers, and the same in words."""
INTERRUPTED = 130
_PIPE_CLOSED = 141

# typer carries a click of its own from one version on; the class behind BadParameter is right in all of them.
_Usage = cast(type[Exception], typer.BadParameter.__mro__[2])


def complain(message: str) -> None:
    """Write `paceline: error: ...` to stderr as one line; a terminal gets it broken between words."""
    line = f"paceline: error: {' '.join(printable(message).split())}"
    print(fitted(line, sys.stderr, "  "), file=sys.stderr, flush=True)


def friendly_errors(action: Callable[[], object]) -> int:
    """Run `action` and return the exit code: 0, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 closed pipe.

    PACELINE_DEBUG=1 prints the traceback as well.
    """
    try:
        code = _exit_code(action)
        return _flushed() or code
    except BrokenPipeError:
        _forget_stdout()
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED


def _flushed() -> int:
    """Write what stdout still holds: 1 if it cannot be written, a full disk for one."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(one_line(error))
        return 1
    return 0


def _exit_code(action: Callable[[], object]) -> int:
    try:
        result = action()
    except BrokenPipeError:
        raise
    except typer.Exit as leave:
        return int(leave.exit_code)
    except typer.Abort:
        return INTERRUPTED
    except _Usage as error:
        trace()
        complain(f"{_usage_message(error)}{_see_help(error)}")
        return 2
    except Exception as error:
        trace()
        if interrupted():  # a library made something else of it
            return INTERRUPTED
        complain(one_line(error))
        return 1
    code = result if isinstance(result, int) else 0
    return code or (INTERRUPTED if interrupted() else 0)  # a library may swallow one


def _usage_message(error: Exception) -> str:
    formatted = getattr(error, "format_message", None)
    text = str(formatted()) if formatted else str(error)
    for pattern, words in _PLAINER:
        text = re.sub(pattern, words, text)
    return text


def _see_help(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" (see '{context.command_path} --help')" if context is not None else ""


def one_line(error: Exception) -> str:
    """What went wrong, for people."""
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in _EXTRAS:
            return _lacking(module, _EXTRAS[module])
    if isinstance(error, MemoryError):
        return (
            f"out of memory{f' ({error})' if str(error) else ''}: use a smaller --context or a smaller model"
        )
    if isinstance(error, OSError) and error.strerror:
        if error.filename == STDOUT:
            _forget_stdout()
            return f"stdout cannot be written: {error.strerror}"
        # Of two, one was to be copied or moved to the other.
        names = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{names}: {error.strerror}" if names else error.strerror
    if isinstance(error, expected()):
        return str(error)
    if outdated := _outdated():
        return outdated
    return f"internal error: {type(error).__name__}: {error} (PACELINE_DEBUG=1 shows where; please report it)"


def _lacking(module: str, extra: str) -> str:
    """What to install for a module that cannot be found."""
    if outdated := _outdated():
        return outdated
    if not extra:
        return f"this needs {module}, which is not installed: pip install {module}"
    index = f" --extra-index-url {_TORCH}" if extra == "export" else ""
    return (
        f"this needs {module}, which is not installed: pip install 'paceline[{extra}]'{index} "
        "(in a clone: -c constraints.txt '.[" + extra + "]')"
    )


def _outdated() -> str | None:
    """The first installed package that is older than paceline declares, and how to renew it."""
    try:
        needs = metadata.requires("paceline") or []
    except metadata.PackageNotFoundError:
        return None
    for need in needs:
        found = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", need)
        if found is None:
            continue
        try:
            here = metadata.version(found[1])
        except metadata.PackageNotFoundError:
            continue
        if _numbers(here) < _numbers(found[2]):
            return f"{found[1]} {here} is too old for this paceline: pip install -U '{found[1]}>={found[2]}'"
    return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def expected() -> tuple[type[Exception], ...]:
    """Errors meant for the user."""
    return (Error, ValueError, OSError, MemoryError)


def trace() -> None:
    """Print the traceback for those who asked for it."""
    if os.environ.get("PACELINE_DEBUG"):
        traceback.print_exc()


def _forget_stdout() -> None:
    """Python flushes stdout once more at exit; without a reader that would print an error of its own."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:  # no file at all
        return

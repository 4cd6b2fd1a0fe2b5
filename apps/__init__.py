"""Speculative decoding for on-device language models: faster than plain decoding, with the same output."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paceline.runtime.options import Options, takes

if TYPE_CHECKING:
    from paceline.memory.errors import ArgumentError as ArgumentError
    from paceline.memory.errors import Error as Error
    from paceline.memory.plan import BudgetError as BudgetError
    from paceline.runtime.answer import Answer as Answer
    from paceline.runtime.events import Event as Event
    from paceline.runtime.manifest import BundleError as BundleError
    from paceline.runtime.model.ort import DeviceError as DeviceError
    from paceline.runtime.request import Sampling as Sampling
    from paceline.runtime.rules.laws import LogitsError as LogitsError
    from paceline.runtime.session import Session as Session
    from paceline.runtime.stats import Statistics as Statistics

    __version__: str

__all__ = [
    "Answer",
    "ArgumentError",
    "BudgetError",
    "BundleError",
    "DeviceError",
    "Error",
    "Event",
    "LogitsError",
    "Sampling",
    "Session",
    "Statistics",
    "__version__",
    "load",
]

_HOMES = {
    "Answer": "paceline.runtime.answer",
    "ArgumentError": "paceline.memory.errors",
    "BudgetError": "paceline.memory.plan",
    "BundleError": "paceline.runtime.manifest",
    "DeviceError": "paceline.runtime.model.ort",
    "Error": "paceline.memory.errors",
    "Event": "paceline.runtime.events",
    "LogitsError": "paceline.runtime.rules.laws",
    "Sampling": "paceline.runtime.request",
    "Session": "paceline.runtime.session",
    "Statistics": "paceline.runtime.stats",
}


@takes(Options)
def load(options: Options) -> Session:
    """Load a bundle (None: the storyteller that ships inside the package) and return a Session.

    bundle: a folder, or a name of `paceline list`; a folder of that name wins.

    cache: "fp32", "fp16" or "int8" for the context; None is fp16 where the bundle has it.
    memory: a budget such as "900MB" for what the process grows from here on; it is planned before anything is
    loaded, and kept. A context that the model does not have becomes the one that it has, with a warning.

    Raises BundleError for a bundle that cannot be used, BudgetError for too small a budget, DeviceError for a device,
    ArgumentError, a ValueError, for a wrong argument: all of them are Errors.
    """
    from paceline.memory.budget import budget_of

    # Counted before the imports below grow the process.
    budget = None if options.memory is None else budget_of(options.memory, options.memory_scope)
    from paceline.runtime.loading import open_session
    from paceline.store import chosen_bundle
    from paceline.unused import unused

    guest = None if options.drafter_bundle is None else chosen_bundle(options.drafter_bundle)
    session = open_session(
        replace(options, bundle=chosen_bundle(options.bundle), drafter_bundle=guest), budget
    )
    if options.context is not None and options.context > session.context:
        warnings.warn(
            f"context={options.context} is more than this model has: the context is {session.context} tokens",
            stacklevel=3,
        )
    learns, parts = bool(session.learner.learned()), session.bundle.manifest.drafters
    for choice in unused(options, [options.drafter], parts, learns):
        if choice.name not in ("draft_depth", "max_nodes"):  # `set_drafter` may give them to another drafter
            warnings.warn(choice.argument, stacklevel=3)
    return session


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import paceline` itself loads nothing heavy."""
    if name == "__version__":
        from importlib.metadata import version

        return version("paceline")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'paceline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

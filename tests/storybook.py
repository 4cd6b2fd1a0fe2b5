"""The embedded bundle for tests, one loaded session a process, and prompts for it."""

from __future__ import annotations

from functools import cache

from paceline.embedded import embedded_bundle
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

_HEROES = ["dog", "cat", "princess", "frog", "dragon", "robot", "bird", "bear", "rabbit", "mouse"]
_THINGS = (
    "red ball,big cake,lost key,magic hat,little boat,tall tree,shiny stone,warm soup,blue kite,old book"
).split(",")
FUSED = "lookup,recycle"
DRAFTERS = ("chain", "tree", "lookup", "suffix", "recycle", FUSED, "chain,lookup", "auto")


@cache
def session(form: str | None = None) -> Session:
    """A session of the embedded bundle with one thread, so that tests do not depend on the machine.

    form: of the cache; None is the bundle's own.
    """
    return load(embedded_bundle(), drafter="none", threads=1, cache=form)


def requests(count: int) -> list[str]:
    """Different requests for a story."""
    return [
        f"Tell me a story about a {_HEROES[i % 10]} and a {_THINGS[(i + i // 10) % 10]}."
        if i % 4
        else f"Once upon a time, a {_HEROES[i % 10]} found a {_THINGS[(i + i // 10) % 10]}"
        for i in range(count)
    ]


def answer(prompt: str, s: Session | None = None, **choices: object) -> list[int]:
    """Token ids of an answer, greedy by default: requests are chatted, openings continued."""
    s = s or session()
    choices = {"sampling": Sampling(), **choices}
    if prompt.startswith("Once"):
        events = s.generate(prompt, **choices)  # type: ignore[arg-type]
    else:
        events = s.chat([{"role": "user", "content": prompt}], **choices)  # type: ignore[arg-type]
    return [e.token for e in events if e.token is not None]

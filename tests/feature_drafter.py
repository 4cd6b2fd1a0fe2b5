"""A tiny target with taps and heads over them, sessions that use them, and a witness of what a head is shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from toy_heads import add_head, random_toy

from paceline import load
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import Outcome
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.manifest import read_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

PROMPT = list(range(40, 70))
TAPS = ("hidden", "hidden.0")
DEPTHS = (1, 2, 3, 4, 6)
ROWS = {"toy": False, "tall": True}
"""The heads of the bundle, and whether they attend."""


def add_heads(folder: Path) -> None:
    """Add a head without a cache, called `toy`, and one with one, `tall`; both know two tokens of three."""
    target = read_manifest(folder).target
    ids = [token for token in range(target.vocab) if token % 3 != 1]
    for name, attends in ROWS.items():
        toy = random_toy(len(TAPS) * target.hidden, target.vocab, ids, attends)
        add_head(folder, name, toy, TAPS, DEPTHS)


@dataclass
class Witness:
    """What the drafters were shown of the target's hidden states, and the texts that heads read, or did not."""

    shown: list[np.ndarray] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def watch(self, drafter: HeadDrafter) -> None:
        """Follow this one from now on."""
        head, observe = drafter.head, drafter.observe
        read = head.read

        def reads(tokens, features):  # type: ignore[no-untyped-def]
            known = read(tokens, features)
            (self.read if known else self.refused).append(len(tokens))
            return known

        def observes(outcome: Outcome) -> None:
            rows = list(outcome.verdict.path)
            self.shown.append(np.hstack([outcome.scored.extras[tap][rows] for tap in TAPS]))
            observe(outcome)

        head.read, drafter.observe = reads, observes  # type: ignore[method-assign]


def write_bundle(base: Path) -> Path:
    """A tiny random target with taps, a draft model, and the heads."""
    from small_checkpoints import write_checkpoint

    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle

    checkpoint = write_checkpoint(base / "checkpoint")
    order = Order(str(checkpoint), drafters={"small": str(checkpoint)}, taps=TAPS)
    folder = export_bundle(order, base / "bundle").folder
    add_heads(folder)
    return folder


def opened(bundle: Path, name: str, nodes: int = 4, **choices: object) -> Session:
    """A session that always drafts as much as it may."""
    made = load(bundle, drafter=name, threads=1, max_nodes=nodes, **{"cache": "fp32"} | choices)
    made._drafting = replace(made._drafting, control=FixedLimit(nodes, DEPTHS[-1]))
    return made


def reference(bundle: Path, tokens: list[int], chunk: int = 256) -> np.ndarray:
    """float32[T, columns]: the taps of a text that is read at once."""
    opened = open_bundle(bundle)
    part = opened.manifest.target
    model = Model(
        Graph(opened.path(part.graph), find_device("cpu"), 1, part), part, 128, widest=4, chunk=chunk
    )
    extras = model.prefill(tokens).extras
    return np.hstack([extras[tap] for tap in TAPS])


def said(session: Session, prompt: list[int], tokens: int = 24) -> list[int]:
    return session.generate(prompt, max_tokens=tokens, sampling=Sampling()).read().tokens

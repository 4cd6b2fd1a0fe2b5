"""The CPU as a device of its own, of which runs fail when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paceline.runtime.model import providers
from paceline.runtime.model.device import Device
from paceline.runtime.model.graph import Graph
from paceline.runtime.session import Session

CAREFUL = replace(providers.CPU, word="careful", left=frozenset(), alone=True, empty=False, keeps=True)
"""Opened, bound and run as others are: no tensor is without elements, calls take turns, the cache is its own value."""


@dataclass
class Driver:
    """Which graphs were opened on a device, and after how many runs of them every run fails."""

    word: str = CAREFUL.word
    opened: list[str] = field(default_factory=list)
    runs: int = 0
    most: int = 1 << 30

    def fails_after(self, runs: int) -> None:
        """So many runs from now on succeed."""
        self.runs, self.most = 0, runs

    def fails_in_answers(self, runs: int, monkeypatch: Any) -> None:
        """So many runs of each answer of any session succeed."""
        generate, driver = Session.generate, self

        def start(session: Session, *arguments: Any, **named: Any) -> Any:
            driver.fails_after(runs)
            return generate(session, *arguments, **named)

        monkeypatch.setattr(Session, "generate", start)

    def watch(self, monkeypatch: Any) -> None:
        """See every graph from now on."""
        real, driver = Graph.__init__, self

        def init(graph: Graph, path: Path, device: Device, *rest: Any, **named: Any) -> None:
            real(graph, path, device, *rest, **named)
            if device.runs.word != driver.word:
                return
            driver.opened.append(str(path))
            run = graph.session.run_with_iobinding

            def fails(*arguments: Any) -> None:
                driver.runs += 1
                if driver.runs > driver.most:
                    raise RuntimeError("the device was removed")
                run(*arguments)

            graph.session.run_with_iobinding = fails

        monkeypatch.setattr(Graph, "__init__", init)

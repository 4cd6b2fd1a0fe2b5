"""What a picture of learning shows: requests in the order asked, and a running mean of their counts."""

from __future__ import annotations

from pathlib import Path

from paceline.bench_measure import OFF, Measured, Run
from paceline.bench_prompts import Task
from paceline.learning_curve import RUNNING, draw_curves, learning_curves


def run(contender: str, number: int, accepted: int, tested: int, rounds: int, repeat: int = 0) -> Run:
    task = Task(f"t{number}", "g", ("x",))
    counts = (rounds, tested, accepted, tested, (), (), 0.0, 0.0, 0.0)
    return Run(contender, task, repeat, (1,), 1.0, 0.0, 1, *counts)


def measured(requests: int, repeats: int = 1) -> Measured:
    """Learning, the n-th request has n of 100 drafted tokens accepted; not learning none."""
    runs = [
        run(contender, number, accepted, 100, 50, repeat)
        for repeat in range(repeats)
        for number in range(requests)
        for contender, accepted in (("chain", number), ("none", 0), (f"chain{OFF}", 0))
    ]
    return Measured(tuple(runs), ())


def test_a_curve_is_of_each_request_and_of_the_last_ones_together() -> None:
    on, off = learning_curves(measured(30), ["chain"])
    assert on.contender == "chain"
    assert on.accepted == tuple(number / 100 for number in range(30))
    assert on.round_tokens[10] == 1 + 10 / 50
    assert on.running_accepted[0] == 0
    assert on.running_accepted[29] == sum(range(30 - RUNNING, 30)) / RUNNING / 100
    assert set(off.accepted) == set(off.running_accepted) == {0.0}


def test_passes_are_added_up_request_by_request() -> None:
    once, twice = (learning_curves(measured(30, repeats), ["chain"])[0] for repeats in (1, 2))
    assert once == twice


def test_a_request_without_drafts_has_no_share_and_leaves_a_gap(tmp_path: Path) -> None:
    runs = (run("chain", 0, 0, 0, 5), run("chain", 1, 3, 4, 5), run(f"chain{OFF}", 0, 1, 4, 5))
    curves = learning_curves(Measured(runs, ()), ["chain"])
    assert curves[0].accepted == (None, 0.75)
    assert curves[0].running_accepted == (None, 0.75)
    draw_curves(curves, "a title", tmp_path / "x.svg")
    assert "<!-- a title -->" in (tmp_path / "x.svg").read_text()

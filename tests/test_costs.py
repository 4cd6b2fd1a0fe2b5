"""What passes cost: measuring, keeping, correcting, and reading files that make no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from draft_models import draft_model
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.embedded import embedded_bundle
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.control.costs import Points, known_points, measure, warm
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.manifest import File
from paceline.runtime.model.key import Key

POINTS = Points(16, ((1, 1.0), (4, 1.3), (8, 2.5)), ((1, 0.001), (8, 0.008)))


class Ticking:
    """A model whose passes take `cost` seconds of its own clock."""

    def __init__(self, context: int = 4096, scale: float = 1e-3) -> None:
        self.context, self.scale, self.now = context, scale, 0.0
        self.ran: list[tuple[int, int]] = []

    def cost(self, rows: int, past: int) -> float:
        return self.scale * (10 + rows + past / 100)

    def probe(self, rows: int, past: int) -> None:
        assert rows + past <= self.context
        self.now += self.cost(rows, past)
        self.ran.append((rows, past))


def test_a_curve_is_straight_between_what_was_measured_and_beyond() -> None:
    curve = CostCurve(POINTS, 17)
    assert curve.seconds(1, 16) == pytest.approx(1.0)
    assert curve.seconds(2, 16) == pytest.approx(1.1)
    assert curve.seconds(6, 16) == pytest.approx(1.9)
    assert curve.seconds(10, 16) == pytest.approx(3.1)
    assert curve.seconds(1, 1016) == pytest.approx(2.0)
    assert curve.seconds(99, 16) == curve.seconds(17, 16)


def test_the_price_of_nodes_never_falls_and_adds_up_to_the_hull() -> None:
    bumpy = CostCurve(Points(0, ((1, 1.0), (2, 1.5), (3, 1.6), (4, 1.7), (5, 3.0)), ((1, 0.0),)), 5)
    slopes = bumpy.slopes(0, 16)
    assert slopes == sorted(slopes)
    assert len(slopes) == 4
    assert slopes[:3] == pytest.approx([0.7 / 3] * 3)
    assert 1.0 + sum(slopes) == pytest.approx(3.0)


def test_measuring_gives_back_what_the_model_takes() -> None:
    model = Ticking()
    curve = CostCurve(measure(model, 17, 10.0, lambda: model.now), 17)
    for rows, past in ((1, 16), (3, 16), (17, 16), (1, 512), (17, 512), (9, 300)):
        assert curve.seconds(rows, past) == pytest.approx(model.cost(rows, past), rel=0.02)


class Opening(Ticking):
    """A device that compiles a graph for every size when that first runs."""

    def cost(self, rows: int, past: int) -> float:
        new = all(rows != ran for ran, _ in self.ran)
        return super().cost(rows, past) + (2.0 if new else 0.0)


def test_what_a_first_run_does_besides_is_not_measured_once_a_model_is_warm() -> None:
    warm(warmed := Opening(), 17)
    cold, known = (dict(measure(m, 17, 3.0, lambda m=m: m.now).seconds) for m in (Opening(), warmed))  # type: ignore[misc]
    assert cold[4] > 2.0, "the budget ended there"
    for width, seconds in known.items():
        assert seconds == pytest.approx(Ticking().cost(width, 16))


class Settling(Ticking):
    """A machine that is slow right after a pass of another width, and reaches one row's speed at the fourth pass."""

    def cost(self, rows: int, past: int) -> float:
        alike = 0
        while alike < len(self.ran) and self.ran[-1 - alike] == (rows, past):
            alike += 1
        settled = 3 if rows == 1 else 1
        return super().cost(rows, past) * (1 + 0.3 * max(settled - alike, 0) / settled)


def test_a_pass_is_measured_as_it_runs_among_its_like() -> None:
    """Plain decoding runs one row again and again: measured slower, every drafter would look better than it is."""
    points = measure(model := Settling(), 17, 10.0, lambda: model.now)
    for rows, seconds in points.seconds:
        assert seconds == pytest.approx(Ticking().cost(rows, 16), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.2])
def test_measuring_keeps_to_its_budget_but_for_one_pass(scale: float) -> None:
    model = Ticking(scale=scale)
    points = measure(model, 65, 1.0, lambda: model.now)
    assert model.now <= 1.0 + model.cost(65, 512)
    assert points.seconds[0][0] == 1


@pytest.mark.parametrize("context", [1, 2, 17, 18, 40, 600])
def test_a_short_context_is_not_left(context: int) -> None:
    model = Ticking(context)
    assert CostCurve(measure(model, 17, 1.0, lambda: model.now), 17).seconds(1, 0) > 0


def test_probing_a_model_leaves_its_cache_alone() -> None:
    model = draft_model(64)
    row = model.extend([1, 2, 3, 4]).copy()
    kept = model.cache.stack.copy()
    measure(model, 3, 0.2)
    assert model.tokens == [1, 2, 3, 4]
    assert (model.cache.stack == kept).all()
    model.rewind(3)
    assert (model.extend([4]) == row).all()


@pytest.mark.parametrize("slow", [0.3, 4.0])
def test_the_drift_follows_the_machine_and_takes_all_widths_along(slow: float) -> None:
    curve, fresh = CostCurve(POINTS, 8), CostCurve(POINTS, 8)
    for _ in range(120):
        curve.learn(1, 16, slow * fresh.seconds(1, 16))
    assert curve.seconds(1, 16) == pytest.approx(slow, rel=0.02)
    assert curve.seconds(5, 16) == pytest.approx(slow * fresh.seconds(5, 16), rel=0.35)


def test_a_width_that_was_measured_wrong_is_corrected_alone() -> None:
    curve, fresh = CostCurve(POINTS, 8), CostCurve(POINTS, 8)
    for _ in range(400):
        curve.learn(1, 16, fresh.seconds(1, 16))
        curve.learn(4, 16, 1.5 * fresh.seconds(4, 16))
    assert curve.seconds(1, 16) == pytest.approx(1.0, rel=0.08)
    assert curve.seconds(4, 16) == pytest.approx(1.5 * 1.3, rel=0.08)


@pytest.mark.parametrize(
    ("absent", "before", "after"), [(0, 0.93, 1.0), (12, 0.85, 0.93), (200, 0.765, 0.81)]
)
def test_a_width_that_comes_back_teaches_what_it_missed(absent: int, before: float, after: float) -> None:
    """Four plain passes among drafts, by 0.7 of what was thought: the longer there were none the more they say."""
    curve, fresh = CostCurve(POINTS, 8), CostCurve(POINTS, 8)
    for _ in range(300):
        curve.learn(1, 16, fresh.seconds(1, 16))
    for _ in range(absent):
        curve.learn(4, 16, fresh.seconds(4, 16))
    four = curve.seconds(4, 16)
    curve.learn(1, 16, 0.7, 4)
    own = curve.seconds(1, 16) / (curve.seconds(4, 16) / four)
    assert before <= own <= after


def test_plain_decoding_is_a_width_of_its_own() -> None:
    """One row between wider passes takes longer than one among its like, and says nothing of plain decoding."""
    curve, fresh = CostCurve(POINTS, 8), CostCurve(POINTS, 8)
    assert curve.seconds(0, 16) == curve.seconds(1, 16)
    for _ in range(300):
        curve.learn(4, 16, fresh.seconds(4, 16))
        curve.learn(1, 16, 1.2)
    assert curve.seconds(1, 16) == pytest.approx(1.2, rel=0.08)
    assert curve.seconds(0, 16) == pytest.approx(1.0, rel=0.1)


def test_a_pause_of_the_process_moves_little() -> None:
    curve = CostCurve(POINTS, 8)
    for _ in range(50):
        curve.learn(1, 16, 1.0)
    curve.learn(1, 16, 500.0)
    curve.learn(1, 16, float("nan"))
    curve.learn(1, 16, -3.0)
    assert curve.seconds(1, 16) < 1.3


# -- the file --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    return tmp_path


def measured_once() -> Points:
    return POINTS


def test_what_was_measured_is_read_back(folder: Path) -> None:
    assert known_points("key", 8, measured_once) == POINTS

    def never() -> Points:
        raise AssertionError("measured twice")

    assert known_points("key", 8, never) == POINTS
    with pytest.raises(AssertionError, match="twice"):
        known_points("key", 17, never)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\x00nonsense",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"key 8": null}',
        b'{"key 8": [16, [], []]}',
        b'{"key 8": [16, [[1, NaN]], [[1, 0.0]]]}',
        b'{"key 8": [16, [[1, -5]], [[1, 0.0]]]}',
        b'{"key 8": [16, [[1, 1e999]], [[1, 0.0]]]}',
        b'{"key 8": [16, [[2, 1.0], [1, 1.0]], [[1, 0.0]]]}',
        b'{"key 8": [16, [[2, 1.0]], [[1, 0.0]]]}',
        b'{"key 8": [1e99, [[1, 1.0]], [[1, 0.0]]]}',
        b'{"key 8": [16, {"1": 2}, "x"]}',
        b'{"key 8": [true, [[1, 1.0]], [[1, 0.0]]]}',
    ],
)
def test_a_file_that_makes_no_sense_is_measured_anew_and_replaced(folder: Path, text: bytes) -> None:
    (folder / "costs.json").write_bytes(text)
    assert known_points("key", 8, measured_once) == POINTS
    assert json.loads((folder / "costs.json").read_bytes())["key 8"][0] == 16


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values)
def test_any_value_in_the_file_is_a_curve_or_nothing(
    value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("PACELINE_CACHE", str(home))
        (home / "costs.json").write_text(json.dumps({"key 8": value}))
        curve = CostCurve(known_points("key", 8, measured_once), 8)
    assert curve.seconds(1, 0) > 0


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("PACELINE_CACHE", str(folder / "file" / "below"))
    assert known_points("key", 8, measured_once) == POINTS


@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
def test_a_measurement_holds_for_the_graph_that_ran_and_no_other(cache: CacheFormat) -> None:
    """Two bundles that differ only in the graph over one form of cache share what was measured over the others."""
    bundle = open_bundle(embedded_bundle())
    part = bundle.manifest.target
    ran = part.graph_for(cache)

    def key(changed: str) -> str:
        files = {**bundle.manifest.files, changed: File(1, "0" * 64)}
        manifest = msgspec.structs.replace(bundle.manifest, files=files)
        return Key(replace(bundle, manifest=manifest), part, "cpu", 2, cache).text()

    now = Key(bundle, part, "cpu", 2, cache).text()
    graphs = [part.graph, *part.caches.values()]
    assert {graph for graph in graphs if key(graph) != now} == {ran}
    assert key(part.data) != now

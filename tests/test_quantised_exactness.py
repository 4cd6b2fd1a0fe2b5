"""Law 9 for quantised bundles: with the native kernels no answer differs from plain decoding's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.loading import load
from paceline.runtime.ops.library import available

MODEL = Path(__file__).parents[1].parent / "shared" / "data" / "models" / "stories260K"
OPENINGS = [
    f"{start} {hero} {rest}"
    for start in ("Once upon a time, a", "One day, the", "There was a")
    for hero in ("dog", "cat", "bird", "girl", "boy", "bear", "frog", "king")
    for rest in ("went to the park", "saw a big tree")
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.export,
    pytest.mark.shared,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the shared models are not here"),
    pytest.mark.skipif(not available(), reason="the native kernels were not built here"),
]


def differing(bundle: Path) -> int:
    """Answers that are not plain decoding's on one thread, over four drafters and two thread counts."""
    wrong = 0
    plain: dict[str, list[int]] = {}
    for threads in (1, 2):
        with load(bundle, drafter="none", threads=threads) as session:
            for drafter in ("none", "chain", "tree", "suffix", "recycle"):
                session.set_drafter(drafter)
                for opening in OPENINGS:
                    ids = session.text.encode(opening)
                    said = [e.token for e in session.generate(ids, max_tokens=64) if e.token is not None]
                    wrong += said != plain.setdefault(opening, said)
    return wrong


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_every_answer_of_a_quantised_bundle_is_plain_decoding_s(quant: str, tmp_path: Path) -> None:
    order = Order(str(MODEL), drafters={"same": str(MODEL)}, quant=quant, calibrate=False)
    export_bundle(order, tmp_path / "bundle")
    assert differing(tmp_path / "bundle") == 0


def test_control_products_that_depend_on_the_width_are_caught(tmp_path: Path) -> None:
    form: dict[str, Any] = {"quant": "int4", "block": 128, "profile": "portable", "calibrate": False}
    order = Order(str(MODEL), drafters={"same": str(MODEL)}, **form)
    export_bundle(order, tmp_path / "bundle")
    assert differing(tmp_path / "bundle") > 0

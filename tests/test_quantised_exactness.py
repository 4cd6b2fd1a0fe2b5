"""Quantised bundles round activations: a wider pass may flip a near tie, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from paceline.export.pipeline import Order, export_bundle
from paceline.runtime.engine import Session, load
from paceline.runtime.tree import TokenTree

MODEL = Path(__file__).parents[1].parent / "shared" / "data" / "models" / "stories260K"
NOISE = 0.3
"""Logits: what a wider pass was seen to change at the most."""
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
]


def margin_at(session: Session, tokens: list[int]) -> float:
    """How far plain decoding's best token is ahead of its second after these tokens, in logits."""
    target = session._target
    target.rewind(0)
    target.prefill(tokens[:-1])
    best = np.sort(target.score(TokenTree.root(tokens[-1])).logits[0])
    return float(best[-1] - best[-2])


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_quantised_answer_differs_only_where_plain_decoding_was_nearly_undecided(
    quant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_bundle(Order(str(MODEL), drafters={"same": str(MODEL)}, quant=quant), tmp_path / "bundle")
    differing, tokens = 0, 0
    with load(tmp_path / "bundle", drafter="none", threads=1) as session:
        for opening in OPENINGS:
            ids = session.text.encode(opening)
            session.set_drafter("none")
            plain = [e.token for e in session.generate(ids, max_tokens=64) if e.token is not None]
            for drafter in ("chain", "tree", "suffix", "recycle"):
                session.set_drafter(drafter)
                drafted = [e.token for e in session.generate(ids, max_tokens=64) if e.token is not None]
                tokens += len(plain)
                if drafted != plain:
                    at = next(i for i, (a, b) in enumerate(zip(drafted, plain, strict=False)) if a != b)
                    differing += 1
                    assert margin_at(session, [*ids, *plain[:at]]) < NOISE
    with capsys.disabled():
        print(
            f"\n{quant}: {differing} of {4 * len(OPENINGS)} answers differ from plain decoding ({tokens} tokens)"
        )
    assert differing < len(OPENINGS)

"""The heads of the repository: each becomes a part of its target's bundle, drafts well there, and changes no word."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx_ir")
from command_line import call

from paceline import load
from paceline.embedded import embedded_bundle

pytestmark = [pytest.mark.export, pytest.mark.slow]
HEADS = Path(__file__).resolve().parents[1] / "heads"
ASKED = [
    f"Tell me a story about a {hero} and a {thing}."
    for hero, thing in (("dog", "red ball"), ("girl", "boat"), ("robot", "flower"), ("cat", "drum"))
]


def test_the_storytellers_head_drafts_more_than_its_drafter(tmp_path: Path) -> None:
    made = call(
        "export", embedded_bundle(), tmp_path / "teller", "--head", f"eagle3={HEADS / 'storyteller'}", "-q"
    )
    assert made.code == 0, made.err
    said, brought = dict[str, list[str]](), dict[str, float]()
    for drafter in ("none", "chain", "eagle3"):
        with load(tmp_path / "teller", drafter=drafter, draft_depth=4) as session:
            said[drafter], tokens, rounds = [], 0, 0
            for asked in ASKED:
                session.reset()
                said[drafter].append(session.generate(asked, max_tokens=80).read().text)
                tokens += session.stats.generated_tokens
                rounds += session.stats.rounds
            brought[drafter] = tokens / rounds
    assert said["chain"] == said["none"] == said["eagle3"]
    assert brought["eagle3"] > brought["chain"] + 0.3 > 2.0

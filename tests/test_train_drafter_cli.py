"""`paceline train drafter`: what cannot be is refused in one line, and what can goes from prompts to a bundle."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from command_line import BUNDLE, call, refused_in_one_line

torch = pytest.importorskip("torch")

from paceline.runtime.loading import load  # noqa: E402
from paceline.runtime.manifest import read_manifest  # noqa: E402
from paceline.runtime.request import Sampling  # noqa: E402

pytestmark = pytest.mark.export


def line_of(*arguments: str | Path) -> str:
    done = call(*arguments)
    assert done.code == 1
    assert done.err.count("\n") == 1, done.err
    return done.err


refused = partial(refused_in_one_line, "train", "drafter")


def test_what_cannot_be_is_refused_before_anything_takes_time(tmp_path: Path) -> None:
    (good := tmp_path / "good.jsonl").write_text('{"prompt": "Tell me a story."}\n')
    out = tmp_path / "out"
    ask = ["--target", BUNDLE, "--prompts", good]
    assert "no answers at" in refused("--target", BUNDLE, out)
    assert "is no bundle" in refused("--target", tmp_path, "--prompts", good, out)
    assert "is a bundle: name another folder" in refused(*ask, BUNDLE)
    assert "does not split into 3 heads" in refused(*ask, "--hidden", "64", "--heads", "3", out)
    assert "teaches the drafter what it wrote itself" in refused(
        *ask, "--on-policy", "0.5", "--loss", "ce", out
    )
    assert "no text file at" in refused(*ask, "--text", tmp_path / "none.txt", out)
    assert "0 leaves no time to learn in" in refused(*ask, "--minutes", "0", out)
    assert "inf is not a finite number" in refused(*ask, "--epochs", "inf", out)
    assert "nan is not a finite number" in refused(*ask, "--rate", "nan", out)
    assert "0 learns nothing" in refused(*ask, "--rate", "0", out)
    assert not out.exists()
    wish = {"taps": [], "final": False}
    other = {"target": {"name": "x", "graph": "0" * 64, "data": ""}, "prompts": "", "wish": wish}
    (answers := tmp_path / "answers").mkdir()
    (answers / "index.json").write_text(json.dumps(other))
    assert "holds answers of other weights" in refused("--target", BUNDLE, "--answers", answers, out)
    assert not out.exists()


@pytest.mark.slow
def test_prompts_become_a_drafter_of_a_bundle(tmp_path: Path) -> None:
    """The storyteller, which gives no taps, a few answers, a few steps; then more steps; then its bundle."""
    prompts = [f"Tell me a story about a {hero}." for hero in "dog cat frog bear duck bird boy girl".split()]
    (asked := tmp_path / "asked.txt").write_text("\n".join(prompts))
    out = tmp_path / "drafter"
    ask = ["--target", BUNDLE, "--threads", "1", "--batch", "300", out]
    given = ["--prompts", asked, "--tokens", "400", "--max-tokens", "60"]
    done = call("train", "drafter", *ask, *given, "--hidden", "64", "--layers", "1", "--epochs", "2")
    assert done.code == 0, done.err
    assert "the limit of --epochs is reached" in done.err
    assert "tokens a round" in done.out
    done = call("train", "drafter", *ask, "--epochs", "20", "--on-policy", "0.3")
    assert done.code == 0, done.err
    points = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert points[-1]["step"] > 2 * points[1]["step"]
    assert points[-1]["loss"] < points[0]["loss"] - 1
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 64
    assert "holds a drafter of hidden 64, not 96" in refused(*ask, "--hidden", "96")
    bundle = tmp_path / "bundle"
    done = call("export", BUNDLE, bundle, "--drafter", f"tiny={out}", "--quant", "int8")
    assert done.code == 0, done.err
    part = read_manifest(bundle).drafters["tiny"]
    assert (part.quant, part.hidden) == ("int8", 64)
    assert part.drafts
    assert read_manifest(bundle).target == read_manifest(BUNDLE).target
    assert "has a drafter 'tiny' already" in line_of(
        "export", bundle, tmp_path / "more", "--drafter", f"tiny={out}"
    )
    assert "--name cannot change a bundle that is finished" in line_of(
        "export", bundle, tmp_path / "more", "--drafter", f"new={out}", "--name", "x"
    )
    told = {}
    for drafter in ("none", "chain:tiny"):
        with load(bundle, drafter=drafter) as session:
            ids = session.text.encode("Once upon a time there was a dog")
            events = list(session.generate(ids, max_tokens=60, sampling=Sampling()))
            told[drafter] = [event.token for event in events if event.token is not None]
    assert told["chain:tiny"] == told["none"]
    assert len(told["none"]) > 30

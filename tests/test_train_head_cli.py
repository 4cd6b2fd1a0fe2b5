"""`paceline train head`: what cannot be is refused in one line, and what can goes from prompts to a head."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from command_line import BUNDLE, call, copied_bundle, refused_in_one_line

torch = pytest.importorskip("torch")

from head_lessons import tiny_head  # noqa: E402

from paceline.export.training.heads.checkpoint import load_head, save_head  # noqa: E402
from paceline.export.training.heads.measure import Measured  # noqa: E402
from paceline.export.training.loop import Progress  # noqa: E402
from paceline.train_bar import Shown, of_head  # noqa: E402

pytestmark = pytest.mark.export


refused = partial(refused_in_one_line, "train", "head")


def test_what_cannot_be_is_refused_before_anything_takes_time(tmp_path: Path) -> None:
    (good := tmp_path / "good.jsonl").write_text('{"prompt": "Tell me a story."}\n')
    (bad := tmp_path / "bad.jsonl").write_text('{"prompt": "Hello"}\n{"text": "x"}\n')
    out = tmp_path / "out"
    ask = ["--method", "eagle3", "--target", BUNDLE, "--prompts", good]
    assert "--taps hidden.2,hidden.4,hidden.5,hidden" in refused(*ask, out)
    assert "bad.jsonl, line 2 has neither 'turns'" in refused(*ask, "--prompts", bad, out)
    assert "no file of prompts at" in refused(*ask, "--prompts", tmp_path / "none", out)
    assert "is no folder" in refused(*ask, good)
    assert "is no bundle" in refused("--method", "hydra", "--target", tmp_path, "--prompts", good, out)
    assert "Medusa has no embedding" in refused(
        "--method", "medusa", "--tied", "--target", BUNDLE, "--prompts", good, out
    )
    for method in ("clover", "falcon"):
        asked = ["--method", method, "--target", BUNDLE, "--prompts", good]
        assert "for dflash alone" in refused(*asked, "--layers", "2", out)
        assert "9 is more than 8" in refused(*asked, "--depth", "9", out)
    assert "Kangaroo has no feed-forward layer" in refused(
        "--method", "kangaroo", "--inner", "64", "--target", BUNDLE, "--prompts", good, out
    )
    assert "guess" in refused("--method", "guess", "--target", BUNDLE, "--prompts", good, out)
    for flags, words in (
        (["--depth", "9"], "9 is more than 8"),
        (["--layers", "2"], "for dflash alone"),
        (["--minutes", "0"], "0 leaves no time to learn in"),
        (["--epochs", "nan"], "nan leaves no time to learn in"),
    ):
        assert words in refused(*ask, *flags, out)
    assert not out.exists()
    copy = copied_bundle(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert "is a bundle: name another folder" in refused(*ask, copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"of something else")
    assert "holds model.safetensors of something else" in refused(*ask, out)
    (out / "config.json").write_text('{"model_type": "llama"}')
    assert "holds something else than a draft head" in refused(*ask, out)
    save_head(tiny_head("hydra"), out)
    assert "holds a head of method hydra, not eagle3" in refused(*ask, out)
    hydra = ["--method", "hydra", "--target", BUNDLE, "--prompts", good]
    assert "holds a head of vocab 20, not 30" in refused(*hydra, "--vocab", "30", out)


def test_what_stays_of_a_training_is_said_once_and_a_failure_with_its_remedy() -> None:
    shown: list[Shown] = []
    report = of_head(shown.append)
    measured = Measured([0.0], [0.0], 1.0, 0.0)
    report(Progress(0.0, 1, 9.0, 5.0, measured))
    report(Progress(1.0, 1, 9.0, 0.0, measured, "epochs"))
    assert [one.line is not None for one in shown] == [True, False]
    report(Progress(1.0, 2, 9.5, 0.0, measured, "epochs", failed=True))
    last = shown[-1].line
    assert last is not None
    assert last.splitlines()[0].startswith("step 2: loss 9.500")
    assert "lower --rate" in last.splitlines()[1]


@pytest.mark.slow
def test_prompts_become_a_head_that_is_gone_on_with(tmp_path: Path) -> None:
    """The storyteller with taps, a few answers, a few steps; then other steps over the same answers."""
    bundle, out = tmp_path / "bundle", tmp_path / "head"
    done = call("export", BUNDLE, bundle, "--taps", "hidden.1,hidden.4,hidden")
    assert done.code == 0, done.err
    prompts = [f"Tell me a story about a {hero}." for hero in "dog cat frog bear duck bird boy girl".split()]
    (asked := tmp_path / "asked.txt").write_text("\n".join(prompts))
    ask = ["--method", "eagle3", "--target", bundle, "--threads", "1", out]
    assert "no answers at" in refused(*ask)
    small = ["--vocab", "500", "--inner", "64", "--unroll", "2", "--batch", "300"]
    first = ["--prompts", asked, "--tokens", "400", "--max-tokens", "60"]
    done = call("train", "head", *ask, *small, *first, "--epochs", "2")
    assert done.code == 0, done.err
    assert "the limit of --epochs is reached" in done.err
    assert "tokens a round" in done.out
    head = load_head(out)
    assert head.config.taps == ["hidden.1", "hidden.4"]
    assert (head.config.vocab, head.config.inner, head.config.depth) == (500, 64, 8)
    assert head.config.target.name == json.loads((bundle / "manifest.json").read_text())["name"]
    done = call("train", "head", *ask, "--epochs", "30", "--unroll", "2", "--batch", "300")
    assert done.code == 0, done.err
    points = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert points[-1]["step"] > 2 * points[1]["step"]
    assert points[-1]["loss"] < points[0]["loss"] - 1
    assert points[-1]["accepted"] == load_head(out).config.acceptance
    more = [
        "--method",
        "eagle3",
        "--target",
        tmp_path / "more",
        "--answers",
        out / "answers",
        "--threads",
        "1",
    ]
    assert call("export", bundle, tmp_path / "more", "--taps", "hidden.2").code == 0
    done = call(
        "train", "head", *more, tmp_path / "again", *small, "--epochs", "1"
    )  # the weights are the same
    assert done.code == 0, done.err
    assert load_head(tmp_path / "again").config.taps == ["hidden.1", "hidden.4"]
    done = call("train", "head", *more, out, "--epochs", "31", "--unroll", "2", "--batch", "300")
    assert done.code == 0, done.err
    index = out / "answers" / "index.json"
    kept = index.read_text()
    index.write_text(kept.replace('"final": true', '"final": false'))
    assert "answers without hidden, which is learnt from" in refused_after(*more, tmp_path / "none")
    there = json.loads(kept)
    index.write_text(json.dumps(there | {"target": there["target"] | {"data": "1" * 64}}))
    assert "holds answers of other weights" in refused_after(*more, tmp_path / "none")
    index.write_text(kept)
    other = ["--answers", out / "answers", "--prompts", asked, "--tokens", "800"]
    assert "holds answers of another bundle, to other prompts" in refused_after(*ask, *other)


def refused_after(*arguments: str | Path) -> str:
    """What is refused once answers are looked at."""
    done = call("train", "head", *arguments)
    assert done.code == 1
    return done.err.splitlines()[-1]

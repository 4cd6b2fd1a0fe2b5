"""`paceline train exit`: early layers learn to say what the target will say, and become the first half of a split."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from command_line import BUNDLE, call, refused_in_one_line
from storybook import requests

torch = pytest.importorskip("torch")

from paceline.export.skips.halving import add_split  # noqa: E402
from paceline.export.skips.trained import read_exit  # noqa: E402
from paceline.export.tapping import add_taps  # noqa: E402, F401
from paceline.export.training.answers import FINAL, Answers  # noqa: E402
from paceline.export.training.exits import RANKS, Costs, Exits, Pupil, normed, sized  # noqa: E402
from paceline.export.training.heads.batches import Batch, Conversation, held_out, make_batch  # noqa: E402
from paceline.export.training.heads.target import Target, read_target  # noqa: E402
from paceline.export.training.heads.vocabulary import choose_vocabulary, coverage  # noqa: E402
from paceline.export.training.loop import Recipe  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402
from paceline.runtime.manifest import read_manifest  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("one_thread")]
refused = partial(refused_in_one_line, "train", "exit")
LAYERS, KNOWN = [1, 3], 96


@cache
def tapped() -> Path:
    """The storyteller with taps behind some layers, and prompts beside it."""
    folder = Path(mkdtemp(prefix="tapped-"))
    taps = ",".join([*(f"hidden.{layer}" for layer in LAYERS), "hidden"])
    assert call("export", BUNDLE, folder / "bundle", "--taps", taps, "-q").code == 0
    lines = (json.dumps({"prompt": request}) + "\n" for request in requests(24))
    (folder / "asked.jsonl").write_text("".join(lines))
    return folder


@cache
def trained() -> tuple[Path, str]:
    """An exit of a few steps, and what its training said."""
    return learnt("exit", "--prompts", tapped() / "asked.jsonl", "--tokens", "4000")


@cache
def knowing() -> tuple[Path, str]:
    """The same that knows KNOWN tokens."""
    return learnt("known", "--answers", trained()[0] / "answers", "--vocab", str(KNOWN))


def learnt(name: str, *how: str | Path) -> tuple[Path, str]:
    out = tapped() / name
    done = call(
        "train", "exit", out, "--target", tapped() / "bundle", *how,
        "--epochs", "3", "--rank", "16", "--rate", "1e-3", "--threads", "1", "--batch", "256",
    )  # fmt: skip
    assert done.code == 0, done.err
    return out, done.out


def test_recall_rises_is_told_by_layer_and_stands_in_the_manifest(tmp_path: Path) -> None:
    out, told = trained()
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    for place in range(len(LAYERS)):
        assert curve[-1]["alpha"][place] > curve[0]["alpha"][place] + 0.01
    made = read_exit(out)
    recall = made.config.recall
    assert sorted(recall) == LAYERS
    for layer, shares in recall.items():
        assert shares == sorted(shares)
        assert f"layer {layer}: names the model's choice among {shares[0]:.0%} of 1" in told
    assert recall[3][0] > recall[1][0]
    add_split(tapped() / "bundle", made, tmp_path / "out")
    split = read_manifest(tmp_path / "out").target.split
    assert split is not None
    assert (split.layer, split.recall) == (made.config.layer, recall)
    said = call("inspect", tmp_path / "out")
    assert f"split behind layer {split.layer}" in said.out


def test_what_the_first_half_names_is_what_was_trained(tmp_path: Path) -> None:
    """On a text of its own, against the choice of the model: the share that training told, about, and more than
    without an exit."""
    out, _ = trained()
    made = read_exit(out)
    shares = []
    for name, wish in (("trained", made), ("plain", made.config.layer)):
        report = add_split(tapped() / "bundle", wish, tmp_path / name)
        assert report.split is not None
        shares.append(report.split.right[3])
    assert shares[0] > shares[1]


def test_an_exit_begins_as_the_best_map_of_its_rank() -> None:
    """Of states of size 1 to what is meant; of full rank it is the map itself, of less what explains most of it."""
    torch.manual_seed(0)
    states, away = torch.randn(4000, 8), 0.3 * torch.randn(8, 8) + 0.1
    plain = Exits(8, 4, LAYERS, seed=3)
    assert torch.allclose(plain(1, states), sized(states))
    meant = sized(states) @ away + 0.5
    errors = []
    for rank in (8, 4, 1):
        exits = Exits(8, rank, LAYERS)
        exits.start(1, 7.0 * states, meant)
        errors.append(float((exits(1, states) - meant).pow(2).mean().detach()))
    assert errors[0] < 1e-3
    assert errors == sorted(errors)
    assert errors[2] < 0.9 * float((plain(1, states) - meant).pow(2).mean().detach())


def test_the_norm_is_the_targets_own() -> None:
    """What training takes for the last states is what the graph gives as them."""
    from paceline.export.heads.check import lesson_of

    bundle = open_bundle(tapped() / "bundle")
    target = bundle.manifest.target
    lesson = lesson_of(bundle.folder, target, ["hidden"], list(range(30, 60)))
    rows = torch.from_numpy(lesson.features[:, : target.hidden].copy())
    found = normed(rows * 3.0, read_target(bundle))
    plain = rows / rows.pow(2).mean(-1, keepdim=True).sqrt()
    again = found / found.pow(2).mean(-1, keepdim=True).sqrt()
    weight = read_target(bundle).norm
    meant = plain * weight
    assert torch.allclose(again, meant / meant.pow(2).mean(-1, keepdim=True).sqrt(), atol=1e-3)


def test_the_layer_is_the_one_behind_which_a_step_takes_least() -> None:
    costs = Costs({1: 0.25, 3: 0.5, 5: 0.8}, head=0.1, draft=0.4)
    assert costs.step(1, 1.0) == pytest.approx(0.25 + 0.1 + 0.75)
    assert costs.step(5, 1.0) == pytest.approx(0.8 + 0.1 + 0.4)  # too little is left to draft beside
    assert costs.step(3, 0.5) == pytest.approx(0.5 + 0.1 + 0.5 + 0.2)
    assert costs.step(1, 0.2) > costs.step(3, 0.9)
    few = replace(costs, known=0.25)
    assert few.step(3, 1.0) == pytest.approx(0.5 + 0.025 + 0.5)


def test_the_vocabulary_is_what_answers_have_most_often_and_every_end() -> None:
    """Of those that are learnt from; its share of the others is told."""
    out, told = knowing()
    made, bundle = read_exit(out), open_bundle(tapped() / "bundle")
    assert made.vocabulary is not None
    assert made.config.vocab == len(made.vocabulary) == KNOWN
    learnt_from, kept = answered()
    ends, vocab = bundle.generation.eos_ids, bundle.manifest.target.vocab
    meant = choose_vocabulary(learnt_from, KNOWN, vocab, ends)
    assert np.array_equal(made.vocabulary, meant)
    assert {*ends} <= {*meant.tolist()}
    assert f"  {coverage(kept, meant, vocab):.1%} of the tokens are in its vocabulary\n" in told
    assert "in its vocabulary" not in trained()[1]  # that of the storyteller is smaller than the default
    assert read_exit(trained()[0]).vocabulary is None


def test_a_choice_outside_the_vocabulary_is_a_miss() -> None:
    """An exit that says what the target says is right where it knows what that is, and never else."""
    out, _ = knowing()
    known, target = read_exit(out).vocabulary, read_target(open_bundle(tapped() / "bundle"))
    assert known is not None
    at = Answers(trained()[0] / "answers").taps.index(FINAL)
    batches = [make_batch([one], 512, [at]) for one in answered()[1]]
    recalls, shares = [], []
    for ids in (known.astype(np.int32), np.arange(target.vocab, dtype=np.int32)):
        pupil = Pupil(saying_all(target), target, ids, batches, Recipe(), Costs({1: 0.25}, 0.1, 0.3))
        measured = pupil.measure(last=True)
        choices = np.concatenate([choice_of(batch, target) for batch in batches])
        recalls.append(pupil.recall[1])
        shares.append(float(np.isin(choices, ids).mean()))
        assert (measured.outside > 0.01) == (len(ids) == KNOWN)
        assert pupil.steps()[1] == pytest.approx(
            0.25 + 0.1 * len(ids) / target.vocab + 0.75 + (1 - recalls[-1][3]) * 0.3
        )
    assert 0.2 < shares[0] < 0.95
    for recall, share in zip(recalls, shares, strict=True):
        assert recall == pytest.approx([share] * RANKS, abs=1e-3)


@cache
def answered() -> tuple[list[Conversation], list[Conversation]]:
    """What is learnt from, and what is not."""
    return held_out(list(Answers(trained()[0] / "answers")), 20)


def saying_all(target: Target) -> Exits:
    """What reads the target's last states, and says what it says."""
    exits, wide = Exits(target.hidden, target.hidden, [1]), torch.eye(target.hidden)
    with torch.no_grad():
        exits.down["1"].copy_(wide)
        exits.up["1"].copy_(torch.diag(1 / target.norm) - wide)
    return exits


def choice_of(batch: Batch, target: Target) -> np.ndarray:
    """Of the places that are measured, what the target says."""
    places = batch.anchors[batch.levels > 0]
    states = torch.from_numpy(batch.hidden[0, places]).float()
    choice: np.ndarray = (states @ target.head.T).argmax(-1).numpy()
    return choice


def test_an_exit_that_knows_few_tokens_becomes_a_split_that_reads_less(tmp_path: Path) -> None:
    said, shares = [], []
    for name, (folder, _) in (("few", knowing()), ("all", trained())):
        done = call("export", tapped() / "bundle", tmp_path / name, "--split", folder, "--json")
        assert done.code == 0, done.err
        split = done.json()["split"]
        shares.append(split["share"])
        said.append((split["vocab"], split["copied"] > 0))
    vocab = read_manifest(tmp_path / "all").target.vocab
    assert said == [(KNOWN, True), (vocab, False)]
    assert shares[0] < shares[1]
    assert f"32 tokens of {KNOWN} of {vocab} are named early" in " ".join(
        call("inspect", tmp_path / "few").out.split()
    )


def test_an_exit_from_before_there_were_vocabularies_is_read(tmp_path: Path) -> None:
    out, _ = trained()
    old = tmp_path / "old"
    old.mkdir()
    (old / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    config = json.loads((out / "config.json").read_text())
    del config["vocab"]
    (old / "config.json").write_text(json.dumps(config))
    made = read_exit(old)
    assert made.config == read_exit(out).config
    assert made.vocabulary is None


def test_it_goes_on_where_it_stopped_and_nowhere_else() -> None:
    out, _ = trained()
    ask = ["--target", tapped() / "bundle", "--threads", "1", "--batch", "256", out]
    done = call("train", "exit", *ask, "--epochs", "4", "--rank", "16")
    assert done.code == 0, done.err
    assert "holds exits of rank 16 behind layers 1, 3" in refused(*ask, "--rank", "8")
    few, _ = knowing()
    before = read_exit(few).vocabulary
    ask = [
        "--target",
        tapped() / "bundle",
        "--answers",
        out / "answers",
        "--threads",
        "1",
        "--rank",
        "16",
        few,
    ]
    words = f"holds exits that know {KNOWN} tokens, not 200: train into another folder, or leave --vocab out"
    assert words in refused(*ask, "--vocab", "200")
    done = call("train", "exit", *ask, "--epochs", "4", "--batch", "256")
    assert done.code == 0, done.err
    assert np.array_equal(read_exit(few).vocabulary, before)


def test_what_cannot_be_is_refused_before_anything_takes_time(tmp_path: Path) -> None:
    prompts = tapped() / "asked.jsonl"
    assert "--taps hidden.1,hidden.2,hidden.3,hidden.4,hidden" in refused(
        "--target", BUNDLE, "--prompts", prompts, tmp_path / "out"
    )
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text('{"paceline_head": 1}')
    ask = ["--target", tapped() / "bundle", "--prompts", prompts]
    assert "holds something else than an exit" in refused(*ask, tmp_path / "head")
    assert "there are no answers at" in refused("--target", tapped() / "bundle", tmp_path / "none")
    assert (
        "it must be 16 or more, not 15" in call("train", "exit", *ask, tmp_path / "none", "--vocab", "15").err
    )
    assert not (tmp_path / "none").exists()


def test_an_exit_of_another_model_or_a_spoilt_one_is_refused(tmp_path: Path) -> None:
    out, _ = trained()
    done = call("export", tapped() / "bundle", tmp_path / "a", "--split", tapped() / "bundle")
    assert done.code != 0
    assert "is no exit" in done.err
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for file in ("config.json", "model.safetensors"):
        (spoilt / file).write_bytes((out / file).read_bytes())
    config = json.loads((spoilt / "config.json").read_text())
    for change, words in (
        ({"rank": 8}, "model.safetensors"),
        ({"layer": 2}, "layer 2 was not trained"),
        ({"target": {**config["target"], "data": "0" * 64}}, "was trained for other weights"),
        ({"more": 1}, "more"),
        ({"vocab": KNOWN}, "it lacks vocabulary"),
        ({"vocab": 15}, "Expected `int` >= 16"),
    ):
        (spoilt / "config.json").write_text(json.dumps({**config, **change}))
        done = call("export", tapped() / "bundle", tmp_path / "b", "--split", spoilt)
        assert done.code != 0
        assert words in done.err
        assert done.err.count("\n") == 1

"""A drafter learns a target's laws from its answers, and what is said of it is so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from head_lessons import Talk, storyteller, talks  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.heads.config import target_id  # noqa: E402
from paceline.export.training import loop  # noqa: E402
from paceline.export.training.corpus import Source  # noqa: E402
from paceline.export.training.drafter.course import Course, Lesson, read_texts, train_drafter  # noqa: E402
from paceline.export.training.drafter.lessons import Recipe, make_batch, places_of  # noqa: E402
from paceline.export.training.drafter.shape import (  # noqa: E402
    Sizes,
    check_drafter,
    projected,
    shape_for,
)
from paceline.export.training.drafter.teacher import Spoken, Teacher, untapped  # noqa: E402
from paceline.export.training.heads.measure import Measured  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("one_thread")]

SMALL = Sizes(hidden=64, layers=1)
RECIPE = Recipe(epochs=8, rate=4e-3, warm_up=5, save_seconds=1e9)


def spoken(conversations: list[Talk], shuffle: bool = False) -> list[Spoken]:
    """Texts with the target's last states; shuffled: with those of other places, whose laws are false."""
    rng, found = np.random.default_rng(0), []
    for talk in conversations:
        taps = talk.taps[:, -1:].copy()
        if shuffle:
            taps[:-1] = taps[rng.permutation(len(taps) - 1)]
        found.append(Spoken(talk.tokens, talk.prompt, taps))
    return found


def course(folder: Path, learnt: list[Spoken], recipe: Recipe = RECIPE, **lesson: object) -> Course:
    """A course that measures on all true answers."""
    bundle = open_bundle(embedded_bundle())
    shape = check_drafter(folder, SMALL, target_id(bundle.manifest), bundle.manifest.target)
    given = Lesson(**{"size": 250, "prompts": 0.0, "threads": 1, "table": "projected", **lesson})
    return Course(folder, bundle, shape, given, recipe, learnt, spoken(talks(12)), storyteller().head, 60)


def trained(made: Course) -> tuple[Measured, list[loop.Progress]]:
    told: list[loop.Progress] = []
    return train_drafter(made, told.append), told


def test_a_drafter_learns_the_laws_of_its_target(tmp_path: Path) -> None:
    real, told = trained(course(tmp_path / "real", spoken(talks())))
    false, _ = trained(course(tmp_path / "false", spoken(talks(), shuffle=True)))
    untaught = told[0].measured
    assert untaught is not None
    assert told[-1].loss < 0.8 * told[0].loss
    assert real.alpha[0] > untaught.alpha[0] + 0.3
    assert real.alpha[0] > false.alpha[0] + 0.15
    assert real.accepted[0] > false.accepted[0] + 0.2
    assert real.round_tokens > untaught.round_tokens + 0.5
    config = json.loads((tmp_path / "real" / "config.json").read_text())
    assert config["paceline_drafter"]["acceptance"] == real.accepted
    assert config["tie_word_embeddings"]
    assert (tmp_path / "real" / "tokenizer.json").read_text() == (
        embedded_bundle() / "tokenizer.json"
    ).read_text()


@pytest.mark.parametrize("own", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_run_that_was_broken_off_ends_with_the_same_weights(tmp_path: Path, own: float) -> None:
    recipe = replace(RECIPE, epochs=2, own=own)
    answers = spoken(talks(12))
    _, told = trained(course(tmp_path / "whole", answers, recipe))
    steps = told[-1].step

    def break_off(progress: loop.Progress) -> None:
        if progress.step == steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_drafter(course(tmp_path / "twice", answers, recipe), break_off)
    assert torch.load(tmp_path / "twice" / "checkpoint.pt", weights_only=True)["step"] == steps // 2
    trained(course(tmp_path / "twice", answers, recipe))
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "twice"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_laws_by_states_are_those_of_a_pass() -> None:
    bundle, text = open_bundle(embedded_bundle()), spoken(talks(12))[0]
    places = places_of(text)
    by_states = Teacher(bundle, storyteller().head, 60, 1).law(text, places)(slice(None))
    asked = Teacher(bundle, None, 60, 1).law(untapped(text.tokens, text.prompt), places)(slice(None))
    assert by_states.shape == (len(text.tokens) - text.prompt, storyteller().vocab)
    assert torch.allclose(by_states.sum(-1), torch.ones(len(places)), atol=1e-4)
    assert float((by_states - asked).abs().sum(-1).max()) < 0.05
    shifted = Teacher(bundle, None, 60, 1).law(text, places - 1)(slice(3, 9))  # by a pass: there is no head
    assert torch.allclose(shifted[1:], asked[3:8], atol=1e-5)


def test_a_projected_table_keeps_how_rows_differ() -> None:
    torch.manual_seed(0)
    table = torch.randn(50, 4) @ torch.randn(4, 24)
    made = projected(table, np.arange(50), 6)
    assert made.shape == (50, 6)
    apart, kept = (torch.cdist(rows, rows) for rows in (table, made))
    assert torch.allclose(
        kept / kept.max(), apart / apart.max(), atol=1e-3
    )  # of rank 4, which 6 columns hold
    rare = torch.cat([torch.randn(40, 2) @ torch.eye(2, 8), 9 * torch.randn(10, 2) @ torch.eye(8)[2:4]])
    counts = np.array([10_000] * 40 + [0] * 10)
    often = projected(rare, counts, 2)[:40]
    apart, kept = (torch.cdist(rows, rows) for rows in (rare[:40], often))
    assert torch.allclose(kept / kept.max(), apart / apart.max(), atol=0.05)  # what is frequent decides
    assert projected(table, np.arange(50), 32).shape == (50, 32)


def test_the_size_follows_from_the_target() -> None:
    target = open_bundle(embedded_bundle()).manifest.target
    real = replace_part(target, layers=30, hidden=576, vocab=49152, parameters=134_515_008, context=8192)
    shape = shape_for(real, Sizes())
    assert (shape.hidden, shape.layers, shape.heads, shape.context) == (192, 3, 3, 8192)
    parameters = sum(p.numel() for p in shape.build().parameters())
    assert 0.05 < parameters / real.parameters < 0.1
    assert shape_for(real, Sizes(hidden=96, heads=2)).heads == 2
    with pytest.raises(ValueError, match="does not split into 5 heads"):
        shape_for(real, Sizes(hidden=96, heads=5))
    with pytest.raises(ValueError, match="do not share 2 key/value heads"):
        shape_for(real, Sizes(hidden=192, heads=3, kv_heads=2))


def replace_part(part: object, **changes: object) -> object:
    import msgspec

    return msgspec.structs.replace(part, **changes)


def test_what_the_drafter_writes_is_judged_in_place_of_the_rest(tmp_path: Path) -> None:
    made = course(tmp_path, spoken(talks(12)))
    pupil = made.pupil(made.recipe, tmp_path)
    batch = make_batch(made.learnt, 60, np.random.default_rng(0), 0.0, 1.0)
    assert all(batch.own)
    written, places = pupil._with_own(batch)
    again, _ = pupil._with_own(batch)
    changed = 0
    for old, new, at, twice in zip(batch.spoken, written, places, again, strict=True):
        assert np.array_equal(old.tokens[: new.prompt], new.tokens[: new.prompt])
        assert old.prompt <= new.prompt < len(new.tokens)
        assert at[0] == new.prompt - 1
        assert at[-1] == len(new.tokens) - 2
        assert not new.taps.size
        assert np.array_equal(new.tokens, twice.tokens)
        changed += not np.array_equal(old.tokens, new.tokens)
    assert changed == len(written)
    assert np.isfinite(pupil.learn(batch))
    assert all(p.grad is not None for p in pupil.module.parameters())


def test_texts_come_first(tmp_path: Path) -> None:
    story = "Once upon a time there was a dog. The dog had a red ball and was happy with it all day long."
    (tmp_path / "a.txt").write_text("<|endoftext|>".join([story] * 40))
    (tmp_path / "b.txt").write_text("Short.")
    source = Source(tmp_path / "a.txt")
    vocabulary = Tokenizer.from_file(str(embedded_bundle() / "tokenizer.json"))
    texts = read_texts([source, source], vocabulary, 0, 12)
    assert len(texts) % 80 == 0
    assert all(8 <= len(text.tokens) <= 12 for text in texts)
    with pytest.raises(ValueError, match="too short to learn from"):
        read_texts([Source(tmp_path / "b.txt")], vocabulary, 0, 12)
    recipe = replace(RECIPE, epochs=1)
    _, told = trained(course(tmp_path / "out", spoken(talks(12)), recipe, text=(source,), text_epochs=6.0))
    first = [p.step for p in told].index(1, 1)  # the answers begin anew at step 1
    assert told[first - 1].loss < 0.7 * told[0].loss
    begun, taught = (load_file(tmp_path / "out" / place / "model.safetensors") for place in ("text", "."))
    name = "model.embed_tokens.weight"
    moved = (begun[name].float() - taught[name].float()).norm()
    fresh = course(tmp_path / "new", spoken(talks(12))).pupil(recipe, tmp_path / "new").module
    assert moved < 0.8 * (fresh.model.embed_tokens.weight - taught[name].float()).norm()


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    bundle = open_bundle(embedded_bundle())
    name, part = target_id(bundle.manifest), bundle.manifest.target
    trained(course(tmp_path / "there", spoken(talks(12)), replace(RECIPE, epochs=0.1)))
    assert check_drafter(tmp_path / "there", Sizes(), name, part).hidden == 64
    with pytest.raises(ValueError, match="holds a drafter of hidden 64, not 96: train into another folder"):
        check_drafter(tmp_path / "there", Sizes(hidden=96), name, part)
    other = replace_part(name, data="0" * 64)
    with pytest.raises(ValueError, match="holds a drafter for another target"):
        check_drafter(tmp_path / "there", Sizes(), other, part)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds something else than a drafter"):
        check_drafter(tmp_path, Sizes(), name, part)
    (alien := tmp_path / "alien").mkdir()
    (alien / "curve.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds curve\.jsonl of something else than a drafter"):
        check_drafter(alien, Sizes(), name, part)
    recipe = replace(RECIPE, loss="tvd")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="is damaged, or not of the model"):
        course(tmp_path / "there", []).pupil(recipe, tmp_path / "cut")
    with pytest.raises(ValueError, match="was trained with --loss kl, not tvd"):
        trained(course(tmp_path / "there", spoken(talks(12)), recipe))

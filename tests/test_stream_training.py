"""Streams are trained as they run, and a draft model that has some goes from its folder into a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import BUNDLE, call, refused_in_one_line
from storybook import requests

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from test_drafter_training import RECIPE, SMALL, replace_part, spoken  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.adding_drafters import add_drafters  # noqa: E402
from paceline.export.errors import ExportError  # noqa: E402
from paceline.export.heads.config import target_id  # noqa: E402
from paceline.export.order import Order  # noqa: E402
from paceline.export.training import loop  # noqa: E402
from paceline.export.training.drafter.course import Course, Lesson, train_drafter  # noqa: E402
from paceline.export.training.drafter.lessons import make_batch, places_of  # noqa: E402
from paceline.export.training.drafter.shape import Sizes, check_drafter, sizes_from  # noqa: E402
from paceline.export.training.drafter.streams import begun, rows_of, said_at  # noqa: E402
from paceline.export.training.heads.measure import Measured  # noqa: E402
from paceline.export.training.start import start_from  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402
from paceline.runtime.loading import load  # noqa: E402
from paceline.runtime.manifest import read_manifest  # noqa: E402
from paceline.runtime.model.streams import Streams  # noqa: E402
from paceline.runtime.request import Sampling  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("one_thread")]
STREAMS = 2


def course(folder: Path, sizes: Sizes, **other: object) -> Course:
    """Twelve stories, which are also what it is measured on."""
    from head_lessons import storyteller, talks

    bundle, given = open_bundle(embedded_bundle()), {"recipe": RECIPE, **other}
    shape = check_drafter(folder, sizes, target_id(bundle.manifest), bundle.manifest.target)
    texts = spoken(talks(12))
    lesson = Lesson(size=250, prompts=0.0, threads=1, table="projected")
    return Course(
        folder, bundle, shape, lesson, learnt=texts, kept=texts, head=storyteller().head, longest=60, **given
    )


def trained(made: Course) -> tuple[Measured, list[loop.Progress]]:
    told: list[loop.Progress] = []
    return train_drafter(made, told.append), told


def test_streams_begin_where_the_text_knows_what_they_are_to_say() -> None:
    rng = np.random.default_rng(0)
    found = {place for _ in range(50) for place in begun(30, 10, 3, rng).tolist()}
    assert found == set(range(9, 26))
    assert len(begun(30, 10, 3, rng)) == 5
    assert not len(begun(12, 10, 3, rng))
    assert said_at(np.array([4, 9]), 3).tolist() == [5, 6, 7, 10, 11, 12]


def test_streams_of_many_places_see_what_each_sees_alone(tmp_path: Path) -> None:
    made = course(tmp_path, replace(SMALL, layers=2, streams=3))
    model = made.pupil(made.recipe, tmp_path).module.eval()
    vocab, texts = 4096, [text.tokens[:length] for text, length in zip(made.learnt, (40, 31), strict=False)]
    places = [np.array([3, 4, 20]), np.array([30])]
    run = rows_of(texts, places, 3, vocab)
    with torch.no_grad():
        states = model.model(
            input_ids=run.tokens, position_ids=run.positions, attention_mask=run.mask, use_cache=False
        ).last_hidden_state
        for row, (text, begins) in enumerate(zip(texts, places, strict=True)):
            for number, place in enumerate(begins.tolist()):
                alone = torch.tensor([[*text[: place + 1].tolist(), vocab, vocab + 1, vocab + 2]])
                meant = model.model(input_ids=alone, use_cache=False).last_hidden_state[0, -3:]
                at = 40 + 3 * number
                assert torch.allclose(states[row, at : at + 3], meant, atol=1e-4)
            plain = model.model(input_ids=torch.tensor(text[None].astype(np.int64)), use_cache=False)
            assert torch.allclose(states[row, : len(text)], plain.last_hidden_state[0], atol=1e-4)


def test_streams_learn_what_comes_later_and_a_broken_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    sizes = replace(SMALL, streams=STREAMS)
    last, told = trained(course(tmp_path / "whole", sizes))
    first = told[0].measured
    assert first is not None
    assert len(last.accepted) == STREAMS + 1
    assert min(last.alpha[1:]) > max(first.alpha[1:]) + 0.06
    mark = json.loads((tmp_path / "whole" / "config.json").read_text())["paceline_drafter"]
    assert (mark["streams"], mark["acceptance"]) == (STREAMS, last.accepted)
    with pytest.raises(ValueError, match="holds a drafter of streams 2, not 3"):
        course(tmp_path / "whole", replace(SMALL, streams=3))
    assert course(tmp_path / "whole", SMALL).shape.vocab == 4096 + STREAMS

    def break_off(progress: loop.Progress) -> None:
        if progress.step == told[-1].step // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_drafter(course(tmp_path / "twice", sizes), break_off)
    trained(course(tmp_path / "twice", sizes))
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "twice"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_what_a_drafter_writes_itself_has_no_streams_in_it(tmp_path: Path) -> None:
    made = course(tmp_path, replace(SMALL, streams=8))
    pupil = made.pupil(made.recipe, tmp_path)
    with torch.no_grad():
        pupil.module.get_input_embeddings().weight[4096:] *= 100.0  # what would be drawn most
    batch = make_batch(made.learnt, 60, np.random.default_rng(0), 0.0, 1.0)
    written, _ = pupil._with_own(batch)
    assert all(text.tokens.max() < 4096 for text in written)
    assert np.isfinite(pupil.learn(batch))


def test_weights_to_begin_with_bring_their_sizes(tmp_path: Path) -> None:
    start, target = (
        start_from(embedded_bundle(), drafter=True),
        open_bundle(embedded_bundle()).manifest.target,
    )
    sizes = sizes_from(start, Sizes(streams=STREAMS), target)
    assert (sizes.hidden, sizes.layers, sizes.streams) == (96, 2, STREAMS)
    made = course(tmp_path, sizes, begin=start.weights)
    table = made.pupil(made.recipe, tmp_path).module.get_input_embeddings().weight
    assert torch.equal(table[:4096], start.weights["model.embed_tokens.weight"])
    assert len(table) == 4096 + STREAMS
    with pytest.raises(ValueError, match="have hidden 96, not 64: leave --hidden out"):
        sizes_from(start, Sizes(hidden=64), target)
    with pytest.raises(ValueError, match="know 4096 tokens where the target has 5000: leave --from out"):
        sizes_from(start, Sizes(), replace_part(target, vocab=5000))


@pytest.mark.slow
def test_a_drafter_with_streams_becomes_a_part_that_drafts(tmp_path: Path) -> None:
    """From the storyteller's own draft model; drafts are those of torch, and answers those of plain decoding."""
    start = start_from(embedded_bundle(), drafter=True)
    sizes = sizes_from(start, Sizes(streams=STREAMS), open_bundle(embedded_bundle()).manifest.target)
    folder, bundle = tmp_path / "fast", tmp_path / "bundle"
    made = course(folder, sizes, begin=start.weights, recipe=replace(RECIPE, epochs=4))
    trained(made)
    add_drafters(embedded_bundle(), Order(source="", drafters={"fast": str(folder)}, quant="int8"), bundle)
    part = read_manifest(bundle).drafters["fast"]
    assert (part.kind, part.streams, part.vocab, part.product) == ("streaming decoder", STREAMS, 4098, True)
    assert len(part.accepted) == STREAMS + 1
    assert not part.drafts
    assert "1 to 3 tokens in one pass" in call("inspect", bundle).out
    text, model = made.kept[0], made.pupil(made.recipe, folder).module.eval()
    with load(bundle, drafter="streams") as session:
        drafter = session._drafting.drafter
        assert isinstance(drafter.head, Streams)
        same = 0
        for place in places_of(text)[:-STREAMS].tolist():
            drafter.head.read(text.tokens[: place + 1].tolist())
            tokens, _ = drafter.head.draft(STREAMS + 1, int(text.tokens[place]))
            ids = torch.tensor([[*text.tokens[: place + 1].tolist(), 4096, 4097]])
            with torch.no_grad():
                meant = model(input_ids=ids).logits[0, -3:, :4096].argmax(-1)
            same += int((torch.from_numpy(tokens) == meant).sum())
        assert same > 0.9 * 3 * (len(places_of(text)) - STREAMS)  # 8 bits round
    for sampling in (Sampling(), Sampling(temperature=0.8, top_k=40)):
        told = {}
        for name in ("none", "streams", "fast,lookup"):
            with load(bundle, drafter=name) as session:
                ids = session.text.encode(requests(3)[0])
                events = list(session.generate(ids, max_tokens=60, sampling=sampling, seed=3))
                told[name] = [event.token for event in events if event.token is not None]
                counted = session.stats.drafted
            assert bool(counted) == (name != "none")
        assert told["streams"] == told["fast,lookup"] == told["none"]


def test_a_folder_whose_streams_make_no_sense_is_refused(tmp_path: Path) -> None:
    trained(course(tmp_path / "fast", replace(SMALL, streams=STREAMS), recipe=replace(RECIPE, epochs=0.1)))
    config = json.loads((tmp_path / "fast" / "config.json").read_text())
    order = Order(source="", drafters={"fast": str(tmp_path / "fast")})
    for streams, said in (
        (16, "says 16 streams"),
        ("two", "says 'two' streams"),
        (3, "knows 4095 tokens beside"),
    ):
        config["paceline_drafter"]["streams"] = streams
        (tmp_path / "fast" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ExportError, match=said):
            add_drafters(embedded_bundle(), order, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (good := tmp_path / "good.jsonl").write_text('{"prompt": "Tell me a story."}\n')
    ask = ["train", "drafter", "--target", BUNDLE, "--prompts", good]
    assert "it must be from 0 to 15, not 16" in refused_in_one_line(*ask, "--streams", "16", tmp_path / "out")
    assert "no model to go on from" in refused_in_one_line(*ask, "--from", tmp_path, tmp_path / "out")

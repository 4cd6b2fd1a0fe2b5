"""Draft heads learn from a target's answers, and what is said of them is so."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from head_lessons import TAPS, Talk, storyteller, talks  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.errors import ExportError  # noqa: E402
from paceline.export.heads.config import Method  # noqa: E402
from paceline.export.training.heads.batches import Batch, Batches, anchors_of, held_out, make_batch  # noqa: E402
from paceline.export.training.heads.checkpoint import METHODS, load_head  # noqa: E402
from paceline.export.training.heads.choice import Choice, check_choice, read_by, taps_of  # noqa: E402
from paceline.export.training.heads.course import Course, make_course, start_head  # noqa: E402
from paceline.export.training.heads.head import Lesson, at  # noqa: E402
from paceline.export.training.heads.measure import Measured, Yardstick, walked  # noqa: E402
from paceline.export.training.heads.trainer import Lessons, Recipe, train_head  # noqa: E402
from paceline.export.training.heads.vocabulary import choose_vocabulary, coverage  # noqa: E402
from paceline.export.training.loop import Point, Progress, diverged, rate_share  # noqa: E402
from paceline.export.training.start import start_from  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("one_thread")]

CHOICES = {
    "eagle3": Choice("eagle3", vocab=300, depth=3, inner=64),
    "eagle": Choice("eagle", vocab=300, depth=3, inner=64),
    "hydra": Choice("hydra", vocab=300, depth=3, inner=64),
    "medusa": Choice("medusa", vocab=300, depth=3),
    "kangaroo": Choice("kangaroo", vocab=300, depth=3),
    "dflash": Choice("dflash", vocab=300, depth=3, inner=64, layers=2),
    "clover": Choice("clover", vocab=300, depth=3, inner=64),
    "falcon": Choice("falcon", vocab=300, depth=3, inner=64),
}
SOME = [pytest.param(m, marks=pytest.mark.slow) if m in ("eagle", "dflash") else m for m in METHODS]
RECIPE = Recipe(epochs=7, rate=2e-3, levels=3, warm_up=5, share=0.5, save_seconds=1e9)


def course(folder: Path, method: Method, conversations: list[Talk]) -> Course:
    """A course that measures on all conversations."""
    bundle, reads = open_bundle(embedded_bundle()), [0, 1, 2]
    taps = read_by(method, TAPS, bundle.manifest.target.layers)
    if method != "eagle":
        conversations = [replace(t, taps=t.taps[:, [0, 1, 2, -1]]) for t in conversations]
    made = make_course(folder, bundle, CHOICES[method], conversations, taps, 700, 60, 0, given=TAPS)
    if method == "eagle":  # reads a copy of the last states, which may be false while the laws are true
        reads = [3]
        conversations = [replace(t, taps=t.taps[:, [0, 1, 2, 3, -1]]) for t in conversations]
        learnt, _ = held_out(conversations, 20)
        made = replace(made, batches=Batches(learnt, 700, 60, reads, 0))
    if method == "kangaroo":
        reads = [0]
    everything = Yardstick(conversations, made.target, made.head.vocabulary, reads, 60)
    return replace(made, yardstick=everything)


def trained(
    folder: Path, method: Method, conversations: list[Talk], recipe: Recipe = RECIPE
) -> tuple[Measured, list[Progress]]:
    made, told = course(folder, method, conversations), list[Progress]()
    last = train_head(made.head, made.target, made.batches, made.yardstick, recipe, folder, told.append)
    return last, told


def shuffled(conversations: list[Talk], copied: bool, seed: int = 0) -> list[Talk]:
    """The same texts with the hidden states of other places, where heads read them: of the last one a copy."""
    rng = np.random.default_rng(seed)
    mixed = []
    for talk in conversations:
        taps = np.concatenate([talk.taps, talk.taps[:, -1:]], 1) if copied else talk.taps.copy()
        taps[:-1, :-1] = taps[rng.permutation(len(taps) - 1), :-1]
        mixed.append(replace(talk, taps=taps))
    return mixed


@pytest.mark.parametrize("method", SOME)
def test_a_head_learns_from_hidden_states(tmp_path: Path, method: Method) -> None:
    real, told = trained(tmp_path / "real", method, talks())
    false, _ = trained(tmp_path / "false", method, shuffled(talks(), method == "eagle"))
    untaught = told[0].measured
    assert untaught is not None
    assert told[-1].loss < 0.7 * told[0].loss
    assert real.accepted[0] > untaught.accepted[0] + 0.1
    # These learn much of 40 short texts by heart, from tokens that EAGLE-1 reads with the model's own tables.
    factor = 0.2 if method in ("eagle", "dflash") else 1.0
    assert real.accepted[0] > false.accepted[0] + 0.15 * factor
    if method != "dflash":  # which tells levels apart only after far more text
        assert real.alpha[0] > false.alpha[0] + 0.1 * factor
        assert real.round_tokens > false.round_tokens + 0.1 * factor
    saved = load_head(tmp_path / "real")
    assert saved.config.acceptance == real.accepted
    assert tuple(saved.config.taps) == read_by(method, TAPS, 8)
    again = course(tmp_path / "real", method, talks()).yardstick.measure(saved, 3)
    assert again.ranks[0][0] == pytest.approx(again.accepted[0], abs=1e-3)
    assert all(sum(level) <= 1.001 and level[0] > level[-1] for level in again.ranks)
    assert saved.config.ranks == again.ranks
    assert again == real


@pytest.mark.parametrize("method", SOME)
def test_a_run_that_was_broken_off_ends_with_the_same_weights(tmp_path: Path, method: Method) -> None:
    recipe = replace(RECIPE, epochs=2, save_seconds=0.0)
    _, told = trained(tmp_path / "whole", method, talks(12), recipe)
    steps = told[-1].step

    def break_off(progress: Progress) -> None:
        if progress.step == steps // 2:
            raise KeyboardInterrupt

    for report in (break_off, lambda progress: None):
        made = course(tmp_path / "twice", method, talks(12))
        try:
            train_head(
                made.head, made.target, made.batches, made.yardstick, recipe, tmp_path / "twice", report
            )
        except KeyboardInterrupt:
            pass
    one, other = load_head(tmp_path / "whole"), load_head(tmp_path / "twice")
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    curves = [
        [json.loads(line) for line in (tmp_path / run / "curve.jsonl").read_text().splitlines()]
        for run in ("whole", "twice")
    ]
    assert [point["step"] for point in curves[0]] == list(range(1, steps + 1))
    for points in zip(*curves, strict=True):
        first, second = ({k: v for k, v in point.items() if k != "minutes"} for point in points)
        assert first == second


def test_ctrl_c_in_the_middle_of_a_step_keeps_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, epochs=3)
    _, told = trained(tmp_path / "whole", "medusa", talks(12), recipe)
    learn, at_step = Lessons.learn, iter(range(1, 100))

    def pressed(self: Lessons, batch: Batch) -> float:
        if next(at_step) == 2:
            signal.raise_signal(signal.SIGINT)
        return learn(self, batch)

    monkeypatch.setattr(Lessons, "learn", pressed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", "medusa", talks(12), recipe)
    kept = torch.load(tmp_path / "twice" / "checkpoint.pt", weights_only=True)
    monkeypatch.undo()
    assert kept["step"] == 2 < told[-1].step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trained(tmp_path / "twice", "medusa", talks(12), recipe)
    one, other = load_head(tmp_path / "whole"), load_head(tmp_path / "twice")
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(ValueError, match="was trained with --loss kl, not ce: train into another folder"):
        trained(tmp_path / "twice", "medusa", talks(12), replace(recipe, loss="ce"))


def test_a_head_that_got_worse_is_no_success() -> None:
    def point(step: int, loss: float, right: float) -> Point:
        return Point(step=step, tokens=1, minutes=1, loss=loss, accepted=[right], alpha=[0.1], round_tokens=1)

    first = point(1, 5.0, 0.0)
    assert not diverged([first], "kl")
    assert not diverged([first, point(9, 4.0, 0.1)], "kl")
    assert diverged([first, point(9, 5.1, 0.1)], "kl")
    assert not diverged([first, point(9, 5.1, 0.1)], "tvd++")
    assert diverged([first, point(9, 4.0, 0.0)], "tvd++")


def test_a_head_that_could_not_be_read_again_is_not_trained() -> None:
    choice = Choice("medusa", vocab=300, depth=100)
    with pytest.raises(ExportError, match="could not be read again"):
        start_head(choice, storyteller(), TAPS, talks(12), [], 0)


def test_states_turn_towards_those_of_the_target(tmp_path: Path) -> None:
    """The first level of Medusa is all state; without a loss of its own the direction is learnt by the way at most."""

    def alike(weight: float) -> float:
        folder = tmp_path / str(weight)
        trained(folder, "medusa", talks(12), replace(RECIPE, epochs=6, features=weight))
        head, batch = load_head(folder), make_batch(talks(12), 60, [0, 1, 2])
        features = torch.from_numpy(batch.features).float().flatten(2)
        anchors = torch.from_numpy(batch.anchors)
        lesson = Lesson(torch.from_numpy(batch.tokens), features, anchors, 0, 1)
        with torch.no_grad():
            states = head.states(lesson)[0]
        hidden = at(torch.from_numpy(batch.hidden).float(), anchors + 1)
        return float(torch.cosine_similarity(states, hidden, dim=-1).mean())

    assert alike(20.0) > alike(0.0) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "rkl", "jsd", "tvd", "tvd++", "lk"])
def test_every_loss_teaches(tmp_path: Path, loss: str) -> None:
    recipe = replace(RECIPE, loss=loss, epochs=6)
    last, told = trained(tmp_path, "medusa", talks(), recipe)
    untaught = told[0].measured
    assert untaught is not None
    assert last.alpha[0] > untaught.alpha[0] + 0.03


def test_the_clock_ends_a_run(tmp_path: Path) -> None:
    _, told = trained(tmp_path, "medusa", talks(12), replace(RECIPE, epochs=1e6, minutes=0.1))
    assert told[-1].ended == "minutes"
    assert told[-1].step > 1


def test_a_rate_that_bursts_is_refused_in_one_line(tmp_path: Path) -> None:
    made = course(tmp_path, "medusa", talks(12))
    with torch.no_grad():
        made.head.fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="--rate"):
        train_head(made.head, made.target, made.batches, made.yardstick, RECIPE, tmp_path)


def test_a_checkpoint_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    made = course(tmp_path, "medusa", talks(12))
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be gone on with"):
            train_head(made.head, made.target, made.batches, made.yardstick, RECIPE, tmp_path)
        torch.save([1], tmp_path / "checkpoint.pt")


def test_the_rate_rises_and_falls() -> None:
    assert rate_share(0.0, 0, 10) == pytest.approx(0.1)
    assert rate_share(0.0, 10, 10) == 1.0
    assert rate_share(0.5, 100, 10) == pytest.approx(0.525)
    assert rate_share(1.0, 100, 10) == pytest.approx(0.05)


def test_tables_of_the_target_are_the_weights_that_it_runs() -> None:
    weights, sizes = start_from(embedded_bundle())
    target = storyteller()
    assert torch.equal(target.head, weights["model.embed_tokens.weight"])
    assert target.embedding is target.head
    assert torch.equal(target.norm, weights["model.norm.weight"])
    assert (target.heads, target.kv_heads, target.head_dim) == (4, 2, 64)
    assert (target.inner, target.epsilon) == (sizes["ffn"], 1e-5)
    assert target.rope_theta == pytest.approx(10000.0, rel=1e-4)


def test_the_head_of_the_target_over_the_last_tap_says_what_stands_in_the_text() -> None:
    talk = talks()[0]
    said = (torch.from_numpy(talk.taps[:-1, -1]).float() @ storyteller().head.T).argmax(-1)
    assert (said[talk.prompt - 1 :].numpy() == talk.tokens[talk.prompt :]).mean() > 0.98


def small(tokens: list[int], prompt: int, width: int = 2) -> Talk:
    taps = np.arange(len(tokens) * 3 * width, dtype=np.float16).reshape(len(tokens), 3, width)
    return Talk(np.array(tokens, np.int32), prompt, taps)


def test_drafts_begin_where_the_answer_is_drafted_and_end_with_what_is_known() -> None:
    """Tokens 3, 4 and 5 are the answer. Pair 1 has the last token asked; row 5 was never run."""
    talk = small([9, 8, 7, 1, 2, 3], 3)
    assert anchors_of(talk, 100).tolist() == [1, 2, 3]
    assert anchors_of(talk, 5).tolist() == [1, 2]
    assert anchors_of(small([9, 1, 2], 1), 100).tolist() == [0]
    batch = make_batch([talk, small([5, 6, 7, 8], 2)], 100, [1, 0])
    assert batch.levels.tolist() == [[3, 2, 1], [2, 1, 0]]
    assert batch.anchors[1].tolist() == [0, 1, 0]
    assert batch.features.shape == (2, 6, 2, 2)
    assert batch.features[0, 2].tolist() == talk.taps[2, [1, 0]].tolist()
    assert batch.hidden[0, 4].tolist() == talk.taps[4, 2].tolist()
    assert not batch.hidden[0, 5].any()
    assert not batch.hidden[1, 3:].any()
    assert batch.lengths.tolist() == [6, 4]


def test_a_share_of_the_prompts_is_learnt_too() -> None:
    texts = [small(list(range(40)), 30) for _ in range(50)]
    counts = {}
    for share in (0.0, 0.5, 1.0):
        batches = list(Batches(texts, 400, 40, [0], 0, share).epoch(0))
        anchors = np.concatenate([b.anchors[b.levels > 0] for b in batches])
        assert (np.bincount(anchors[anchors >= 28]) == 50).sum() == 10
        counts[share] = (anchors < 28).sum() / 50
    assert counts[0.0] == 0
    assert counts[0.5] == pytest.approx(14, abs=2)
    assert counts[1.0] == 28


def test_an_epoch_has_every_conversation_once_and_goes_on_at_any_step() -> None:
    texts = [small(list(range(i, i + 4 + i % 5)), 2) for i in range(1, 24)]
    batches = Batches(texts, 20, 7, [0], seed=3)
    first = list(batches.epoch(0))
    assert len(first) == batches.per_epoch
    begun = sorted(int(row[0]) for batch in first for row in batch.tokens)
    assert begun == list(range(1, 24))
    assert all(batch.tokens.size <= 20 and batch.tokens.shape[1] <= 7 for batch in first)
    assert batches.tokens == sum(min(7, len(text.tokens)) for text in texts)
    step = batches.per_epoch + 2
    late, same = next(batches.endless(step)), list(batches.epoch(1))[2]
    assert np.array_equal(late.anchors, same.anchors)
    assert np.array_equal(late.tokens, same.tokens)
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(first, batches.epoch(1), strict=True))


def test_what_is_held_out_is_so_for_good() -> None:
    texts = [small([i, i // 3, 5, 6, 7], 2) for i in range(200)]
    learnt, kept = held_out(texts, 10)
    assert len(learnt) + len(kept) == 200
    assert 5 < len(kept) < 50
    fewer, fewer_kept = held_out(texts[:100], 10)
    assert {id(t) for t in fewer_kept} <= {id(t) for t in kept}
    assert {id(t) for t in fewer} <= {id(t) for t in learnt}
    with pytest.raises(ValueError, match="1 answer is too few"):
        held_out(texts[:1], 10)


def test_the_vocabulary_is_what_answers_use_most() -> None:
    texts = [small([9, 9, 9, 4, 4, 7], 3), small([9, 2, 4, 7, 7, 7], 2)]
    chosen = choose_vocabulary(texts, 3, 12, always=[11])
    assert chosen.tolist() == [4, 7, 11]
    assert chosen.dtype == np.int32
    assert coverage(texts, chosen, 12) == pytest.approx(7 / 7)
    assert coverage(texts, np.array([7], np.int32), 12) == pytest.approx(4 / 7)
    assert choose_vocabulary(texts, 4, 12).tolist() == [0, 1, 4, 7]
    assert choose_vocabulary(texts, 99, 12).tolist() == list(range(12))


def test_greedy_drafts_are_held_against_greedy_answers() -> None:
    """A story with half of its tokens drawn by chance says nothing of them."""
    rng = np.random.default_rng(0)
    drawn = []
    for talk in talks(12):
        tokens = talk.tokens.copy()
        places = rng.random(len(tokens)) < 0.5
        places[: talk.prompt] = False
        tokens[places] = rng.integers(0, 4096, places.sum())
        drawn.append(replace(talk, tokens=tokens))
    target, ids = storyteller(), torch.arange(4096)
    head = start_head(Choice("medusa", vocab=4096, depth=2), target, TAPS, talks(12), [], 0)
    sides = [Yardstick(side, target, ids, [0, 1, 2], 60) for side in (talks(12), drawn, [*drawn, *talks(12)])]
    pure, chance, mixed = (side.measure(head, 2) for side in sides)
    assert mixed.accepted == pure.accepted
    assert mixed.round_tokens == pure.round_tokens
    assert chance.accepted != pure.accepted
    assert mixed.alpha == pure.alpha  # Medusa looks at no token, and all are in the vocabulary


def test_a_walk_counts_rounds_as_decoding_does() -> None:
    """Two right and one more, none right, then one right; the text ends with the last draft."""
    assert walked(np.array([2, 9, 9, 0, 1, 9])) == (6, 3)
    assert walked(np.array([0, 0, 0])) == (3, 3)
    assert walked(np.array([0, 0, 1])) == (3, 3)
    assert walked(np.array([], np.int64)) == (0, 0)


def test_another_head_than_the_one_in_the_folder_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "medusa", talks(12), replace(RECIPE, epochs=0.1))
    with pytest.raises(ValueError, match="holds a head of method medusa, not hydra"):
        check_choice(tmp_path, Choice("hydra"))
    with pytest.raises(ValueError, match="holds a head of vocab 300, not 400"):
        check_choice(tmp_path, Choice("medusa", vocab=400))
    assert check_choice(tmp_path, Choice("medusa")) is not None
    assert check_choice(tmp_path / "none", Choice("medusa")) is None


def test_a_bundle_without_taps_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"gives no taps.*--taps hidden\.2,hidden\.4,hidden\.5,hidden"):
        taps_of(open_bundle(embedded_bundle()))

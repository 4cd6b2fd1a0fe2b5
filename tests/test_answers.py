"""A target's own answers as distillation data: the tokens and states of plain decoding, kept and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from paceline import load
from paceline.export.errors import ExportError
from paceline.export.training.answers import FINAL, INDEX, Answers, Conversation, Wish, write_answers
from paceline.runtime.manifest import read_manifest, write_manifest
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export
TAP = "hidden.0"
PROMPTS = [f"Tell me about the number {n} and about {'cats ' * (n % 5)}" for n in range(23)]
WISH = Wish(taps=(TAP,), longest=24, prompt=64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_checkpoints import write_checkpoint

    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle

    base = tmp_path_factory.mktemp("answers")
    order = Order(str(write_checkpoint(base / "checkpoint")), taps=(TAP, FINAL), quant="int8")
    return export_bundle(order, base / "bundle").folder


@pytest.fixture(scope="module")
def answers(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return write_answers(
        tmp_path_factory.mktemp("set") / "answers", PROMPTS, bundle, WISH, 10**9, threads=1, slots=5
    )


def test_answers_need_no_taps(bundle: Path, answers: Answers, tmp_path: Path) -> None:
    wish = msgspec.structs.replace(WISH, taps=(), final=False)
    bare = write_answers(tmp_path, PROMPTS[:5], bundle, wish, 10**9, threads=1, slots=5)
    assert bare.taps == ()
    assert msgspec.json.decode((tmp_path / INDEX).read_bytes())["wish"]["final"] is False
    for asked, found in by_prompt(bare).items():
        assert found.taps.shape == (len(found.tokens), 0, 0)
        assert np.array_equal(found.tokens, by_prompt(answers)[asked].tokens)


def by_prompt(answers: Answers) -> dict[tuple[int, ...], Conversation]:
    return {tuple(c.tokens[: c.prompt].tolist()): c for c in answers}


def test_every_prompt_is_answered_once(answers: Answers) -> None:
    assert answers.numbers() == set(range(len(PROMPTS)))
    assert len(list(answers)) == len(PROMPTS)
    assert answers.answered() == sum(len(c.tokens) - c.prompt for c in answers)


def test_greedy_answers_and_their_states_are_those_of_plain_decoding(bundle: Path, answers: Answers) -> None:
    found = by_prompt(answers)
    with load(bundle=str(bundle), drafter="none", threads=1) as session:
        buffer = session._target.keep_taps([TAP, FINAL])
        compared = 0
        for number, prompt in enumerate(PROMPTS):
            if WISH.temperatures[number % len(WISH.temperatures)] != 0:
                continue
            ids = (
                session.chat_tokens([{"role": "user", "content": prompt}])
                if session.has_template
                else session.encode(prompt)
            )
            session.reset()
            plain = session.generate(ids, max_tokens=WISH.longest, sampling=Sampling()).read().tokens
            kept = found[tuple(ids)]
            assert kept.tokens.tolist() == [*ids, *plain]
            rows = len(kept.tokens) - 1
            states = np.stack([buffer.rows(tap, 0, rows) for tap in (TAP, FINAL)], axis=1)
            np.testing.assert_array_equal(kept.taps[:rows], states.astype(np.float16))
            assert not kept.taps[rows:].any()
            compared += 1
    assert compared >= 14


def test_a_sampled_answer_does_not_depend_on_what_is_written_beside_it(
    bundle: Path, answers: Answers, tmp_path: Path
) -> None:
    alone = write_answers(tmp_path / "alone", PROMPTS, bundle, WISH, 10**9, threads=1, slots=1)
    beside, compared = by_prompt(answers), 0
    for key, kept in by_prompt(alone).items():
        np.testing.assert_array_equal(kept.tokens, beside[key].tokens)
        np.testing.assert_array_equal(kept.taps, beside[key].taps)
        compared += 1
    assert compared == len(PROMPTS)
    other = write_answers(
        tmp_path / "other", PROMPTS, bundle, msgspec.structs.replace(WISH, seed=1), 10**9, threads=1
    )
    changed = [key for key, c in by_prompt(other).items() if c.tokens.tolist() != beside[key].tokens.tolist()]
    assert 0 < len(changed) <= len(PROMPTS) // 3 + 1  # greedy ones stay


def test_a_set_is_gone_on_with(bundle: Path, answers: Answers, tmp_path: Path) -> None:
    heard: list[int] = []
    begun = write_answers(tmp_path / "set", PROMPTS, bundle, WISH, 100, threads=1, slots=3)
    assert 0 < len(begun.numbers()) < len(PROMPTS)
    whole = write_answers(
        tmp_path / "set", PROMPTS, bundle, WISH, 10**9, threads=1, slots=3, report=heard.append
    )
    assert whole.numbers() == answers.numbers()
    assert heard[0] == begun.answered() >= 100
    assert heard == sorted(heard)
    assert by_prompt(whole).keys() == by_prompt(answers).keys()


def test_long_prompts_are_passed_over(bundle: Path, tmp_path: Path) -> None:
    short = msgspec.structs.replace(WISH, prompt=30)
    made = write_answers(tmp_path / "set", PROMPTS, bundle, short, 10**9, threads=1)
    assert all(c.prompt <= 30 for c in made)
    assert len(made.numbers()) < len(PROMPTS)


def test_another_set_is_not_mixed_in(bundle: Path, answers: Answers) -> None:
    folder = next(iter(answers._shards)).parent
    with pytest.raises(ValueError, match="use another folder"):
        write_answers(folder, PROMPTS[:3], bundle, WISH, 10, threads=1)
    with pytest.raises(ValueError, match="use another folder"):
        write_answers(folder, PROMPTS, bundle, msgspec.structs.replace(WISH, longest=5), 10, threads=1)


def test_what_cannot_be_used_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gives no hidden\.1: .* `paceline export \S+ OUT --taps"):
        write_answers(tmp_path / "a", PROMPTS, bundle, Wish(taps=("hidden.1",)), 10, threads=1)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="holds no answers"):
        Answers(tmp_path / "nothing")
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="holds no answers"):
        Answers(tmp_path)


def test_a_damaged_file_is_named_and_answered_again(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    whole = by_prompt(write_answers(folder, PROMPTS, bundle, WISH, 10**9, threads=1))
    first, last = sorted(folder.glob("shard-*.npz"))
    with np.load(first) as found:
        arrays = dict(found)
    for damage in (
        {"tokens": -arrays["tokens"]},
        {"taps": arrays["taps"][:, :1]},
        {"ends": arrays["ends"][::-1]},
        {"prompts": arrays["prompts"] + 1000},
        {"numbers": arrays["numbers"][1:]},
    ):
        np.savez(first, **(arrays | damage))
        with pytest.raises(ValueError, match=rf"{first.name} is damaged .*: delete it"):
            list(Answers(folder))
    first.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is damaged"):
        write_answers(folder, PROMPTS, bundle, WISH, 10**9, threads=1)
    kept = last.read_bytes()
    first.unlink()
    again = by_prompt(write_answers(folder, PROMPTS, bundle, WISH, 10**9, threads=1))
    assert last.read_bytes() == kept
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[key].taps, whole[key].taps) for key in whole)


def test_what_is_finished_survives_a_stop(bundle: Path, tmp_path: Path) -> None:
    def stop(tokens: int) -> None:
        if tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_answers(tmp_path / "set", PROMPTS, bundle, WISH, 10**9, threads=1, report=stop)
    assert Answers(tmp_path / "set").numbers()


def test_answers_depend_on_the_model_and_not_on_what_is_measured_of_it(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    write_answers(tmp_path / "set", PROMPTS, copy, WISH, 50, threads=1)
    manifest = read_manifest(copy)
    write_manifest(msgspec.structs.replace(manifest, acceptance={"lookup": 1.5}), copy)
    write_answers(tmp_path / "set", PROMPTS, copy, WISH, 100, threads=1)
    write_manifest(msgspec.structs.replace(manifest, name="another"), copy)
    write_answers(tmp_path / "set", PROMPTS, copy, WISH, 150, threads=1)
    index = tmp_path / "set" / "index.json"
    there = json.loads(index.read_text())
    index.write_text(json.dumps(there | {"target": there["target"] | {"data": "1" * 64}}))
    with pytest.raises(ValueError, match="use another folder"):
        write_answers(tmp_path / "set", PROMPTS, copy, WISH, 200, threads=1)

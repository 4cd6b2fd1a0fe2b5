"""The target in two graphs: the same answers over the same weights, and what the first half says early."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
from bundle_copy import edit
from command_line import call
from rough_worker import endure

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.export.heads.config import target_id
from paceline.export.skips.halving import add_split
from paceline.export.skips.trained import Exit, ExitConfig
from paceline.export_report import lines
from paceline.memory.cache import CacheFormat
from paceline.memory.errors import ArgumentError
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.contracts import Early
from paceline.runtime.drafters.branches import WORTH
from paceline.runtime.manifest import BundleError, read_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.first_half import FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.request import Sampling
from paceline.runtime.split import halves
from paceline.runtime.tree import TokenTree

LAYER, RANK = 3, 8
PROMPTS = ["Once upon a time, a dog", "One day, the princess", "The robot was sad"]
FORMS: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")
TREE = TokenTree.picked([5, 6, 7, 8, 9], [-1, 0, 1, 0, 3], ["", *["a"] * 4])


def trained(up: float) -> Exit:
    """An exit that nobody trained; up: the size of what it adds, 0 for nothing."""
    manifest, rng = read_manifest(embedded_bundle()), np.random.default_rng(4)
    wide = manifest.target.hidden
    config = ExitConfig(
        hidden=wide,
        rank=RANK,
        layers=[LAYER],
        layer=LAYER,
        recall={LAYER: [0.5, 0.7]},
        target=target_id(manifest),
    )
    weights = {
        "down": rng.normal(size=(wide, RANK)).astype(np.float32),
        "up": (up * rng.normal(size=(RANK, wide))).astype(np.float32),
        "bias": (up * rng.normal(size=wide)).astype(np.float32),
    }
    return Exit(config, weights)


@cache
def split_bundle(up: float = 0.0) -> Bundle:
    place = Path(mkdtemp(prefix="halves-"))
    add_split(embedded_bundle(), trained(up), place / "split")
    return open_bundle(place / "split")


def test_a_report_says_of_what_text_each_share_is(tmp_path: Path) -> None:
    """What training saw are the model's own answers, which an exit foresees far more often."""
    of_exit = " ".join(lines(add_split(embedded_bundle(), trained(0.0), tmp_path / "trained")))
    assert (
        "on a sample text, which is not the model's own as those of its training were (50% of 1 there),"
        in of_exit
    )
    of_layer = " ".join(lines(add_split(embedded_bundle(), LAYER, tmp_path / "layer")))
    assert "on a sample text the choice of the model" in of_layer


def models(form: CacheFormat, up: float = 0.0) -> tuple[Model, Model, list[Early]]:
    """The target whole and in halves, with caches of their own, and what the first half says."""
    bundle, cpu, heard = split_bundle(up), find_device("cpu"), list[Early]()
    target = bundle.manifest.target
    first, rest = halves(target)
    opened = [Graph(bundle.path(p.graph_for(form)), cpu, 1, p) for p in (target, first, rest)]
    whole = Model(opened[0], target, 256, 24, 64, cache=form)
    early = FirstHalf(opened[1], target, heard.append)
    return whole, Model(opened[2], target, 256, 24, 64, cache=form, first=early), heard


@pytest.mark.parametrize("form", FORMS)
def test_both_halves_say_what_the_whole_says_bit_for_bit(form: CacheFormat) -> None:
    """Prompts in chunks, trees, chosen rows of them, and taps."""
    whole, both, _ = models(form)
    for model in (whole, both):
        model.keep_taps([f"hidden.{LAYER}"])
        model.prefill(list(range(20, 110)))
    for path in ((0, 1, 2), (0, 3), (0,)):
        said = [model.score(TREE) for model in (whole, both)]
        assert np.array_equal(said[0].logits, said[1].logits)
        for model in (whole, both):
            model.commit(path)
    assert whole.tokens == both.tokens
    taps = [model.taps.rows(f"hidden.{LAYER}", 0, model.length) for model in (whole, both) if model.taps]
    assert np.array_equal(*taps)


def test_all_weights_are_in_memory_once() -> None:
    whole, both, _ = models("fp32")
    first = both._passes._first
    assert first is not None
    assert whole._graph.weights is both._graph.weights is first.graph.weights


@pytest.mark.parametrize("up", [0.0, 0.02], ids=["as it is", "moved"])
def test_the_first_half_says_what_norm_and_head_make_of_its_states(up: float) -> None:
    """As numpy has it: each row that is asked for, the likeliest first, and none of a prompt."""
    from paceline.export.heads.table import target_head

    _, both, heard = models("fp32", up)
    bundle = split_bundle(up)
    both.prefill(list(range(20, 90)))
    assert not heard
    states = both.score(TREE).extras[f"hidden.{LAYER}"].copy()
    [early] = heard
    weights = trained(up).weights
    sized = states / np.sqrt((states**2).mean(axis=1, keepdims=True) + 1e-6)
    moved = sized + sized @ weights["down"] @ weights["up"] + weights["bias"]
    table = target_head(bundle.folder, bundle.manifest.target)
    normed = moved / np.sqrt((moved**2).mean(axis=1, keepdims=True) + 1e-5)
    logits = normed * norm_weight(bundle) @ table.T
    logits -= logits.max(axis=1, keepdims=True)
    law = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert early.ids.shape == (len(TREE), 32)
    assert (np.diff(early.chances, axis=1) <= 0).all()
    meant = np.take_along_axis(law, early.ids, axis=1)
    assert np.abs(meant - early.chances).max() < 0.06  # its head rounds what it reads
    assert np.abs(law.max(axis=1) - early.chances[:, 0]).max() < 0.06


def norm_weight(bundle: Bundle) -> np.ndarray:
    """Of the final norm."""
    from paceline.export.training.heads.target import read_target

    return read_target(bundle).norm.numpy()


SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=1), Sampling()]


def told(sampling: Sampling, mirror: str, drafter: str, branches: str | None = None) -> list[list[int]]:
    choices = {"threads": 2, "mirror": mirror, "mirror_branches": branches}
    with load(split_bundle().folder, drafter=drafter, **choices) as session:  # type: ignore[arg-type]
        how = {"sampling": sampling, "seed": 5, "max_tokens": 40}
        return [session.generate(prompt, **how).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "coupled", "usual"])
@pytest.mark.parametrize("drafter", ["chain", "tree"])
@pytest.mark.parametrize("branches", list(WORTH))
def test_answers_are_plain_decodings_on_any_branches(branches: str, drafter: str, sampling: Sampling) -> None:
    assert told(sampling, "on", drafter, branches) == told(sampling, "off", "none")


def test_answers_are_plain_decodings_where_others_draft_too() -> None:
    assert told(SAMPLINGS[0], "on", "chain,lookup") == told(SAMPLINGS[0], "off", "none")
    assert told(SAMPLINGS[1], "on", "tree,lookup") == told(SAMPLINGS[1], "off", "none")
    assert told(SAMPLINGS[1], "on", "auto") == told(SAMPLINGS[1], "off", "none")


@pytest.mark.parametrize("drafter", ["chain", "tree"])
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_no_delay_and_no_failure_changes_an_answer(sampling: Sampling, drafter: str) -> None:
    done = endure(split_bundle().folder, PROMPTS, sampling, 150, 0.05, drafter=drafter)
    assert done.hits > 20
    assert done.killed


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_ten_thousand_rounds_of_delays_and_failures(sampling: Sampling) -> None:
    done = endure(split_bundle().folder, PROMPTS, sampling, 10_000, 0.02)
    assert done.hits > 2000
    assert done.killed > 50


def test_what_is_no_split_of_the_target_is_refused(tmp_path: Path) -> None:
    folder = split_bundle().folder
    for name, (field, value, words) in enumerate(
        [
            ("layer", 1, "of which it gives no tap"),
            ("first", "target/rest.onnx", "which is not among its files or has another use"),
            ("rest", "target/none.onnx", "which is not among its files or has another use"),
            ("named", 300, "256"),
            ("first", "../x.onnx", "Expected `str` matching regex"),
        ]
    ):
        copy = tmp_path / str(name)
        shutil.copytree(folder, copy)
        edit(copy, lambda manifest, f=field, v=value: manifest["target"]["split"].update({f: v}))  # type: ignore[misc]
        with pytest.raises(BundleError, match=words):
            open_bundle(copy)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "7"], "no leaving after layer 7 of 8"),
        (["--split", "no-such"], "no exit at no-such"),
        (["--split", "3", "--exit", "a=2"], "--exit is added to a finished bundle in an export of its own"),
    ],
)
def test_a_wrong_order_of_a_split_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = call("export", embedded_bundle(), tmp_path / "out", *arguments)
    assert done.code != 0
    assert words in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_a_bundle_has_one_split(tmp_path: Path) -> None:
    done = call("export", split_bundle().folder, tmp_path / "out", "--split", "4")
    assert done.code != 0
    assert "has a split already" in done.err


@pytest.mark.parametrize("more", [["--taps", "hidden.2"], ["--exit", "early=2"]], ids=["taps", "exit"])
def test_what_needs_another_tap_comes_before_the_split(tmp_path: Path, more: list[str]) -> None:
    """Else the bundle would load, and its two graphs would not."""
    done = call("export", split_bundle().folder, tmp_path / "out", *more)
    assert done.code != 0
    assert "in two graphs, which come last and would not give hidden.2" in done.err
    assert not (tmp_path / "out").exists()
    there = call("export", split_bundle().folder, tmp_path / "out", "--taps", f"hidden.{LAYER}", "-q")
    assert there.code == 0, there.err


def test_branches_by_the_exit_need_a_split() -> None:
    with pytest.raises(ArgumentError, match="has no split"):
        load(drafter="chain", threads=2, mirror="on", mirror_branches="exit")

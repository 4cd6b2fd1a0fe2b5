"""Leaving the target early: graphs of its first layers, Kangaroo's block behind them, DEL's choice, and sessions."""

from __future__ import annotations

import json
import os
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
from bundle_copy import edit
from command_line import call
from planned_memory import taken
from small_exits import LAYERS, beside_a_target, exit_bundle
from small_heads import small_config, small_tensors, write_small_head

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.export.errors import ExportError
from paceline.export.heads.adding import add_heads
from paceline.export.heads.checkpoint import read_head
from paceline.export.heads.references import reference_of
from paceline.export.skips.leaving import add_exits
from paceline.memory.cache import CacheFormat
from paceline.runtime.contracts import Outcome, Scored, Verdict
from paceline.runtime.drafters.exits import LayerDrafter, choose
from paceline.runtime.manifest import BundleError, Part, read_manifest
from paceline.runtime.part import first_layers
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

PROMPT = "Once upon a time, there was a little fox who"
FORMS: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")


def load_tokens(text: str) -> list[int]:
    with load(embedded_bundle(), drafter="none", threads=1) as session:
        return session.encode(text)


def drafted(exits: object, tokens: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """The text with so many drafted tokens, and the rows that they were chosen from."""
    text, rows = list(tokens), [exits.read(tokens).copy()]  # type: ignore[attr-defined]
    for _ in range(count - 1):
        text.append(int(rows[-1].argmax()))
        rows.append(exits.extend(text[-1:]).copy())  # type: ignore[attr-defined]
    return text, np.stack(rows)


@pytest.mark.parametrize("form", FORMS)
def test_first_layers_say_what_the_target_says_behind_them(form: CacheFormat) -> None:
    target, exits = beside_a_target("del", form=form)
    taps = target.keep_taps([f"hidden.{layer}" for layer in LAYERS])
    tokens = load_tokens(PROMPT)
    target.prefill(tokens[:-1])
    alone = target.score(TokenTree.root(tokens[-1]))
    meant = {layer: alone.extras[f"hidden.{layer}"].copy() for layer in LAYERS}
    for layer in LAYERS:
        early = exits.early[layer]
        early.begin(tokens)
        assert np.array_equal(early.state(tokens[-1]), meant[layer])
        states = taps.rows(f"hidden.{layer}", 0, 4)
        exits.layer = layer
        assert exits.said(layer, meant[layer]).tolist() == [int(exits.read(tokens).argmax())]
        assert len(exits.said(layer, states)) == 4
    assert np.array_equal(alone.logits, target.score(TokenTree.root(tokens[-1])).logits)


def test_all_its_weights_but_those_of_a_block_are_the_targets_own_memory() -> None:
    for name in ("del", "roo"):
        target, exits = beside_a_target(name)
        for early in exits.early.values():
            assert early._graph.weights is target._graph.weights
        assert (exits.reader._graph.weights is target._graph.weights) == (name == "del")
        assert exits.early_bytes < 2**18


@pytest.mark.parametrize("form", [None, "fp16", "int8"])
def test_a_block_drafts_what_it_says_of_the_targets_own_rows(form: CacheFormat | None) -> None:
    """Level after level as numpy has it, and torch as trained (`test_head_graphs`), over taps of the whole text."""
    target, exits = beside_a_target("roo", form=form or "fp32")
    taps, tokens = target.keep_taps(["hidden.2"]), load_tokens(PROMPT)
    target.prefill(tokens[:-1])
    assert exits.catch_up(tokens, taps)
    text, rows = drafted(exits, tokens, 5)
    again = drafted(exits, tokens, 5)[1]  # what was drafted is forgotten
    assert np.array_equal(rows, again)
    target.prefill(text[len(tokens) - 1 :])
    head = read_head(exit_bundle().folder.parent / "head", 8)
    logits, _ = reference_of(head).read(text, taps.rows("hidden.2", 0, len(text)))
    meant = logits[len(tokens) - 1 :]
    assert np.isneginf(rows[:, len(head.vocabulary) :]).all()
    near = {None: 0.03, "fp16": 0.03, "int8": 0.08}[form]  # the block's weights have 8 bits
    found = rows[:, head.vocabulary]
    assert np.abs(found - meant).max() < near * np.abs(meant).max()
    assert np.abs(np.roll(found, 1, axis=0) - meant).max() > 3 * near * np.abs(meant).max()


def test_its_cache_follows_the_text_whatever_was_drafted_between() -> None:
    target, exits = beside_a_target("roo")
    fresh_target, fresh = beside_a_target("roo")
    taps, fresh_taps = target.keep_taps(["hidden.2"]), fresh_target.keep_taps(["hidden.2"])
    tokens = load_tokens(PROMPT)
    for end in (5, 9, 7, len(tokens)):  # on, and back, and another way
        target.keep_common(tokens[: end - 1])
        target.prefill(tokens[target.length : end - 1])
        assert exits.catch_up(tokens[:end], taps)
        drafted(exits, tokens[:end], 3)
    assert exits.catch_up(tokens, taps)
    fresh_target.prefill(tokens[:-1])
    assert fresh.catch_up(tokens, fresh_taps)
    assert np.array_equal(drafted(exits, tokens, 3)[1], drafted(fresh, tokens, 3)[1])
    target.drop_taps()
    target.keep_taps(["hidden.2"])
    assert not exits.catch_up(tokens, taps)


@pytest.mark.parametrize("name", ["roo", "del", "exit:roo,lookup"])
@pytest.mark.parametrize("form", ["fp16", pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_answers_are_those_of_plain_decoding(name: str, form: str) -> None:
    folder = exit_bundle().folder
    for sampling in (Sampling(), Sampling(temperature=0.8, top_k=20, repetition_penalty=1.1)):
        told = []
        for drafter in (name, "none"):
            with load(folder, drafter=drafter, threads=1, cache=form, max_nodes=6) as session:
                told.append(session.generate(PROMPT, max_tokens=40, sampling=sampling, seed=3).read().tokens)
                if drafter == name and sampling.temperature == 0:
                    assert session.stats.drafted > 0
                    assert session.stats.accepted > 0
        assert told[0] == told[1]


@pytest.mark.parametrize("name", ["roo", "del"])
def test_so_they_are_after_the_context_slid(name: str) -> None:
    told = []
    for drafter in (name, "none"):
        with load(exit_bundle().folder, drafter=drafter, threads=1, context=96, overflow="slide") as session:
            told.append(session.generate(PROMPT, max_tokens=150).read().tokens)
    assert told[0] == told[1]
    assert len(told[0]) > 96


@pytest.mark.parametrize("name", ["roo", "del"])
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_an_answer_that_depends_on_drafts_is_that_of_its_seed(name: str, accept: str) -> None:
    hot, first = Sampling(temperature=1.0), list[list[int]]()
    for seeds in ([1, 2, 3], [3, 2, 1]):
        with load(exit_bundle().folder, drafter=name, threads=1) as session:
            told = [
                session.generate(PROMPT, max_tokens=20, sampling=hot, accept=accept, seed=seed).read().tokens
                for seed in seeds
            ]
            assert session.stats.drafted > 0
        first = first or told
    assert told == first[::-1]


def test_what_is_chosen_promises_most_for_its_cost() -> None:
    """By the formula of DEL, over every layer and length."""
    costs = {2: 0.2, 5: 0.5, 7: 0.8}
    for shares in product((0.0, 0.3, 0.6, 0.9, 0.97), repeat=3):
        right = dict(zip(costs, shares, strict=True))
        worth = {
            (layer, d): (1 - a ** (d + 1)) / (1 - a) / (d * costs[layer] + 1)
            for layer, a in right.items()
            for d in range(7)
        }
        layer, depth = choose(right, costs, 6)
        assert worth[layer, depth] == pytest.approx(max(worth.values()))
        assert (depth == 0) == (max(worth.values()) <= 1)
    assert choose({2: 0.9, 5: 0.9, 7: 0.99}, costs, 6)[0] == 2
    assert choose({2: 0.1, 5: 0.9, 7: 0.9}, costs, 6)[0] == 5
    assert choose({2: 0.9, 5: 0.9, 7: 0.9}, costs, 0)[1] == 0


def test_a_layer_is_judged_by_what_it_would_have_drafted() -> None:
    """Layers are asked in turn, at the places of the accepted path, before the first token that the target refused."""
    target, exits = beside_a_target("del")
    drafter, tokens = LayerDrafter(exits, 4096), load_tokens(PROMPT)
    target.prefill(tokens[:-1])
    seen = dict.fromkeys(LAYERS, 0.5)
    for number in range(6):
        scored = target.score(TokenTree.chain([tokens[-1], 5, 6], "exit"))
        layer = LAYERS[number % len(LAYERS)]
        [said] = exits.said(layer, scored.extras[f"hidden.{layer}"][:1]).tolist()
        chosen = said if number < 3 else said + 1
        outcome = Outcome(TokenTree.chain([tokens[-1], 5, 6], "exit"), scored, Verdict((0,), chosen, 1))
        drafter.observe(outcome)
        seen[layer] = drafter._shares.right[layer]
    for layer in LAYERS:
        assert seen[layer] == pytest.approx((0.5 + 0.5 / 1.95) * (1 - 1 / (0.95 * 1.95 + 1)), rel=1e-6)
    before = dict(drafter._shares.right)
    drafter.observe(
        Outcome(TokenTree.chain(tokens[:3], ""), Scored(scored.logits[:0]), Verdict((0, 1, 2), 4, 2))
    )
    assert drafter._shares.right == before


def copied(folder: Path) -> Path:
    """A copy to be spoilt, whose weights are links."""

    def place(source: str, to: str) -> None:
        (os.link if source.endswith(".data") else shutil.copy2)(source, to)

    return Path(shutil.copytree(exit_bundle().folder, folder / "bundle", copy_function=place))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("del", {"exits": {}, "reads": [], "costs": {}}, "an exit, reads 0 taps"),
        ("del", {"reads": ["hidden.1"]}, "does not read what the layers say"),
        ("roo", {"exits": {2: "target/early.2.onnx", 3: "target/early.3.onnx"}}, "does not read"),
        ("del", {"costs": {1: 0.5}}, "does not say what leaving after each layer costs"),
        ("del", {"weights": {}}, "other weights than the target"),
        ("roo", {"exits": {2: "drafters/roo/early.2.onnx"}}, "does not stand beside the target's weights"),
        ("roo", {"exits": {2: "target/early.5.onnx"}}, "is not among its files"),
        ("roo", {"exits": {2: "target/model.onnx"}}, "twice"),
        ("roo", {"kind": "feature decoder"}, "leaves the target early, as only an exit may"),
        ("del", {"taps": ["hidden"]}, "gives taps"),
        ("roo", {"exits": {2: "target/early.3.onnx"}}, "hidden.2"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, fields: dict[str, object], words: str
) -> None:
    folder = copied(tmp_path)
    edit(folder, lambda made: made["drafters"][name].update(json.loads(json.dumps(fields))))
    with pytest.raises(BundleError, match=words):
        load(folder, drafter=name, threads=1)


def test_an_older_schema_has_no_exits(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder, lambda made: made.update(schema=5))
    with pytest.raises(BundleError, match="schema 5 does not know"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("layers", "words"),
    [([7], "no leaving after layer 7 of 8: name layers from 0 to 6"), ([2, 90], "layer 90 of 8")],
)
def test_layers_that_leave_nothing_out_are_refused(tmp_path: Path, layers: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        add_exits(embedded_bundle(), {"del": layers}, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_block_for_a_later_layer_than_there_is_is_refused(tmp_path: Path) -> None:
    bundle = exit_bundle()
    config = small_config(bundle.manifest.target, "kangaroo", taps=["hidden.7"])
    head = write_small_head(tmp_path / "head", config)
    with pytest.raises(ExportError, match="late goes on from layer 7, and this target has layers 0 to 7"):
        add_heads(bundle.folder, {"late": str(head)}, tmp_path / "made")
    for changes, why in (
        ({"taps": ["hidden.1", "hidden.2"]}, "reads one layer of the target, not hidden.1, hidden.2"),
        ({"taps": ["hidden"]}, "reads one layer of the target, not hidden"),
        ({"tied": True}, "has no table of tokens"),
    ):
        head = write_small_head(tmp_path / "other", config, small_tensors(config), **changes)
        with pytest.raises(ExportError, match=why):
            read_head(head, 8)


def test_the_earliest_tap_is_what_a_block_learns_from() -> None:
    pytest.importorskip("torch")
    from paceline.export.training.heads.choice import read_by

    assert read_by("kangaroo", ["hidden.15", "hidden.2", "hidden"], 30) == ("hidden.2",)
    for given, layers, remedy in (
        (["hidden"], 30, "--taps hidden.2,hidden"),
        (["hidden.7", "hidden"], 8, "--taps hidden.2,hidden"),
        (["hidden.2", "hidden"], 3, "--taps hidden.1,hidden"),
    ):
        with pytest.raises(ValueError, match=f"{', '.join(given)} of {layers} layers have none: .* {remedy}"):
            read_by("kangaroo", given, layers)
    assert read_by("kangaroo", ["hidden.6", "hidden"], 8) == ("hidden.6",)


def test_the_command_line_makes_shows_and_runs_them(tmp_path: Path) -> None:
    made = tmp_path / "made"
    told = call("export", embedded_bundle(), made, "--exit", "early=1,5").out
    assert "early: the model left after one of the layers 1 and 5" in told
    shown = " ".join(call("inspect", made).out.split())
    assert "exit early" in shown
    assert "up to one of the layers 1 and 5 and its norm and LM head (del)" in shown
    assert "over the target's weights" in shown
    alone = call("export", embedded_bundle(), tmp_path / "alone", "--exit", "early=3").out
    assert "early: the model left after layer 3; " in alone
    assert "of a sample text\n" in alone
    said = [
        call("run", "-b", made, "--drafter", name, "--temp", "0", PROMPT).out for name in ("exit", "none")
    ]
    assert said[0] == said[1]
    for wish, why in (
        ("early", "NAME=LAYER"),
        ("early=two", "names no layers"),
        ("exit=2", "the word is taken"),
        ("small=2", "has a drafter 'small' already"),
    ):
        refused = call("export", embedded_bundle(), tmp_path / "other", "--exit", wish)
        assert refused.code != 0
        assert why in " ".join(refused.err.split()), refused.err
    roo = " ".join(call("inspect", exit_bundle().folder).out.split())
    assert "target up to layer 2 and a block of attention, 2048 of 4096 tokens (kangaroo)" in roo


def test_a_plan_counts_them_without_weights_as_the_process_does() -> None:
    bundle, peaks, planned = exit_bundle(), dict[str, int](), dict[str, int]()
    for drafter in ("none", "roo", "del", "none", "roo", "del"):  # the first loads measure, the others know
        peaks[drafter], planned[drafter] = taken(bundle.folder, drafter)
    weights = bundle.manifest.files[bundle.manifest.target.data].bytes
    for drafter, peak in peaks.items():
        # Buffers of taps fill with long prompts alone, and where a load could not measure an estimate stands.
        assert 0.97 * peak < planned[drafter] < 1.13 * peak
        assert peak - peaks["none"] < weights / 2
        assert planned[drafter] - planned["none"] < 0.7 * weights


def test_of_a_graph_up_to_a_layer_nothing_behind_it_runs() -> None:
    import onnx_ir as ir

    bundle = exit_bundle()
    target, part = bundle.manifest.target, bundle.manifest.drafters["del"]
    for layer in LAYERS:
        early: Part = first_layers(target, part, layer)
        graph = ir.load(bundle.path(early.graph)).graph
        assert sum("Attention" in node.op_type for node in graph) == layer + 1
        assert early.attending == tuple(range(layer + 1))

"""What a draft model of another vocabulary drafts beside the target: keyed by the target's tokens, in its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from bundle_copy import edit
from draft_models import VOCAB, draft_model
from going_on import Inline, said
from law_rounds import GREEDY
from rough_worker import endure
from toy_vocabularies import DRAFT, across, sides

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.runtime.contracts import DraftLimit, Early
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.growing import Chains
from paceline.runtime.drafters.hearing import Ear
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.translation.border import Border
from paceline.runtime.translation.crossing import Crossing, Spelled
from paceline.runtime.translation.reading import Reading
from paceline.runtime.tree import TokenTree

A, B, AB, BA, C, ABA = range(VOCAB)
TEXT = [C, A, B, C]
LIMIT = DraftLimit(6, 4)
PROMPTS = ["Once upon a time, a dog", "One day, the princess", "The robot was sad"]


def reading() -> Reading:
    pair = sides()
    found = Reading(pair, pair.ngrams)
    found.follow(TEXT)
    return found


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """The tokens on the way to every node, without the root's."""
    return [tuple(tree.tokens[list(tree.path(node))[1:]].tolist()) for node in range(len(tree))]


def picked(tokens: list[int], parents: list[int]) -> TokenTree:
    return TokenTree.picked([C, *tokens], [-1, *parents], ["", *["x"] * len(tokens)])


def test_every_token_that_the_target_looks_at_has_a_node_where_it_ends() -> None:
    """Two ways to cut the same letters end at one node."""
    spelled = Spelled(reading(), picked([AB, A, B, C], [0, 0, 2, 1]))
    a, b, c = 0, 1, 2
    assert paths(spelled.tree()) == [(), (a,), (a, b), (a, b, c)]
    assert spelled._places == [0, 2, 1, 2, 3]


def random_window(seed: int) -> tuple[TokenTree, Early]:
    """A tree of the target, and the chances of all tokens behind each of its nodes."""
    rng = np.random.default_rng(seed)
    ways = {(): 0}
    for _ in range(4):
        above = list(ways)[rng.integers(len(ways))]
        ways.setdefault((*above, int(rng.integers(VOCAB))), len(ways))
    tokens, parents = [way[-1] for way in ways if way], [ways[way[:-1]] for way in ways if way]
    law = np.sort(rng.dirichlet(np.ones(VOCAB), len(ways)))[:, ::-1]
    ids = np.argsort(rng.random(law.shape), axis=1)
    return picked(tokens, parents), Early(
        ids, np.log(law).astype(np.float32), np.zeros(len(ways), np.float32)
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_run_has_the_chance_of_all_tokens_that_begin_with_it(seed: int) -> None:
    """As counted token by token: of each the chance that it is what brings the text there."""
    tree, early = random_window(seed)
    read = reading()
    spelled = Spelled(read, tree)
    heard = spelled.hear(early)
    meant: dict[tuple[int, ...], float] = {}
    chances, at = [1.0], {way: node for node, way in enumerate(paths(tree))}
    for node, way in enumerate(paths(tree)):
        if node:
            above = int(tree.parents[node])
            chances.append(chances[above] * np.exp(early.chances[above][early.ids[above] == way[-1]])[0])
        before = tuple(piece for token in way for piece in read.run_of(token))
        for token, odds in zip(early.ids[node].tolist(), np.exp(early.chances[node]), strict=True):
            for run in accumulate((piece,) for piece in read.run_of(token)):
                meant[before + run] = meant.get(before + run, 0.0) + chances[node] * odds
    assert len(at) == len(tree)
    shown, reached = paths(spelled.tree()), {(): 1.0}
    for way, ids, odds in zip(shown, heard.ids.tolist(), np.exp(heard.chances), strict=True):
        assert (np.diff(odds) <= 1e-6).all()
        for token, chance in zip(ids, odds, strict=True):
            if token >= 0:
                reached[*way, token] = reached[way] * chance
    assert reached.keys() == {(), *meant}
    assert all(reached[way] == pytest.approx(meant[way], abs=1e-4) for way in meant)


def test_what_ends_somewhere_leaves_room_for_what_was_not_named() -> None:
    """Behind `a` alone anything may follow; behind the beginning of `ab` only what the target said."""
    early = Early(
        np.array([[AB, A]]), np.log(np.array([[0.6, 0.3]], np.float32)), np.array([0.1], np.float32)
    )
    spelled = Spelled(reading(), TokenTree.root(C))
    heard = spelled.hear(early)
    assert paths(spelled.tree()) == [(), (0,)]
    assert heard.rest is not None
    assert heard.rest.tolist() == pytest.approx([0.1, 0.3 / 0.9], abs=1e-6)
    assert np.exp(heard.chances[:, 0]).tolist() == pytest.approx([0.9, 0.6 / 0.9], abs=1e-6)


def test_a_token_that_is_looked_at_and_was_not_named_has_the_chance_of_the_rest() -> None:
    early = Early(
        np.array([[A], [A]]), np.log(np.array([[0.5], [0.8]], np.float32)), np.array([0.25, 0.1], np.float32)
    )
    heard = Spelled(reading(), picked([C], [0])).hear(early)
    assert heard.ids.tolist() == [[0, 2], [0, -1]]
    assert np.exp(heard.chances[0]).tolist() == pytest.approx([0.5, 0.25], abs=1e-6)


def proposed(told: Inline, request: Request = GREEDY) -> tuple[Border, TokenTree]:
    model, words = draft_model(), len(DRAFT)
    crossing = Crossing(told, Ear(VOCAB))
    border = across(
        Ahead(model, words, ChainModel(model, words), Chains("chain"), crossing, "exit"),
        learnt=True,
        crossing=crossing,
    )
    border.begin(request)
    return border, border.propose(TEXT, LIMIT)


@pytest.mark.parametrize("token", range(VOCAB))
def test_a_correction_that_the_target_says_early_is_drafted_on(token: int) -> None:
    """Also one that several draft tokens spell."""
    ready = {}
    for heard in (token, None):
        told = Inline(4)
        border, tree = proposed(told)
        told.early = None if heard is None else said([heard] * len(tree))
        told.begin(tree)
        border.propose([*TEXT, token], LIMIT)
        ready[heard] = told.tally.hits
    assert ready[token] == 1


def test_without_a_word_of_it_what_several_draft_tokens_spell_is_rarely_there() -> None:
    """What the test above would not show if all was drafted anyway."""
    told = Inline(1)
    border, tree = proposed(told)
    told.begin(tree)
    border.propose([*TEXT, ABA], LIMIT)
    assert (told.tally.hits, told.tally.misses) == (0, 1)


def test_the_early_law_is_drawn_from_in_the_targets_tokens() -> None:
    """With its noise, and its penalties: of tokens that are equally likely by what was said."""
    meant = set()
    for seed in range(12):
        sampling = Sampling(temperature=1, logit_bias={BA: -50.0})
        request = Request(sampling, "coupled", seed, 0, 1)
        ids = np.array([A, B, AB, C, ABA])
        token = int(ids[GumbelNoise(seed, 0).after(TEXT, ids).argmax()])
        told = Inline(1)
        border, tree = proposed(told, request)
        flat = np.full((len(tree), VOCAB), -np.log(VOCAB), np.float32)
        told.early = Early(np.tile(np.arange(VOCAB), (len(tree), 1)), flat)
        told.begin(tree)
        assert border._crossing is not None
        ear = border._crossing._chooser
        assert isinstance(ear, Ear)
        assert ear._said[0][0][0] == token
        meant.add(token)
    assert len(meant) > 2


SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=1), Sampling()]


_KNOWN = 2500
"""Tokens of the storyteller that the other vocabulary has, too."""
GUEST = "storyteller.small"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The storyteller in two graphs, and a copy of it whose tokenizer knows none of its rarer tokens."""
    pytest.importorskip("onnx_ir")
    from paceline.export.skips.halving import add_split

    place = tmp_path_factory.mktemp("crossing")
    add_split(embedded_bundle(), 5, place / "split")
    copy = Path(shutil.copytree(embedded_bundle(), place / "storyteller"))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {w if at < _KNOWN else f"unknown{at}": at for w, at in model["vocab"].items()}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]
    raw = json.dumps(tokenizer).encode()
    (copy / "tokenizer.json").write_bytes(raw)
    entry = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    edit(copy, lambda manifest: manifest["files"].update({"tokenizer.json": entry}))
    return place / "split", copy


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "coupled", "usual"])
@pytest.mark.parametrize("drafter", [f"chain:{GUEST}", f"chain:{GUEST},lookup", f"tree:{GUEST}"])
def test_answers_are_plain_decodings(pair: tuple[Path, Path], drafter: str, sampling: Sampling) -> None:
    split, guest = pair
    ask = {"sampling": sampling, "seed": 5, "max_tokens": 40}
    hits = {}
    with load(drafter="none") as plain:
        expected = [plain.generate(prompt, **ask).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]
    for branches in ("exit", "weight"):
        with load(
            split, drafter=drafter, drafter_bundle=guest, threads=2, mirror="on", mirror_branches=branches
        ) as session:
            answers = [session.generate(prompt, **ask).read() for prompt in PROMPTS]  # type: ignore[arg-type]
        assert [answer.tokens for answer in answers] == expected
        tallies = [answer.stats.beside for answer in answers]
        hits[branches] = sum([tally.hits for tally in tallies if tally is not None])
    assert min(hits.values()) > 3


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_no_delay_and_no_failure_changes_an_answer(pair: tuple[Path, Path], sampling: Sampling) -> None:
    split, guest = pair
    done = endure(split, PROMPTS, sampling, 150, 0.05, drafter=f"chain:{GUEST}", drafter_bundle=guest)
    assert done.hits > 10
    assert done.killed

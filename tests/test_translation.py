"""Texts, requests, drafts and outcomes across two vocabularies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_rounds import GREEDY, same
from law_subjects import TableChain
from tiny_tokenizers import KINDS, SEEN, folder_of
from toy_vocabularies import DRAFT, TARGET, across, sides, spelling

from paceline.runtime.bundle.generation import Generation
from paceline.runtime.contracts import DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.words import Translation
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.text.text import Text
from paceline.runtime.translation.asking import TranslatedNoise, translate_request
from paceline.runtime.translation.lattice import Lattice, over_target
from paceline.runtime.translation.mapping import map_vocabularies, overlap
from paceline.runtime.translation.ngrams import EDGE_BYTES, ENTRY_BYTES, ROOT, NgramCache
from paceline.runtime.translation.reading import Reading
from paceline.runtime.translation.retokenizer import Retokenizer
from paceline.runtime.translation.sides import Sides
from paceline.runtime.translation.spelling import Spelling
from paceline.runtime.tree import TokenTree

WIDE = DraftLimit(64, 16)
SHARED = Path(__file__).parents[1].parent / "shared" / "data"
REAL = [
    "tokenizers/gpt2",
    "tokenizers/llama2_fast",
    "tokenizers/phi-3-mini",
    "models/stories260K",
    "models/stories-sampler",
]
PAIRS = [(one, other) for one in KINDS for other in KINDS if one != other]


@pytest.fixture(scope="module")
def spellings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spelling]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: Spelling.of(Text.load(folder_of(make(), folder / name), Generation(eos_ids=[2])))
        for name, make in KINDS.items()
    }


def reading(pair: Sides) -> Reading:
    return Reading(pair, pair.ngrams)


def texts(tree: TokenTree, side: Spelling) -> set[bytes]:
    """What every path of a tree spells."""
    return {side.spells(tree.tokens[list(tree.path(node))[1:]].tolist()) for node in range(1, len(tree))}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_text_is_spelled_by_its_tokens(spellings: dict[str, Spelling], kind: str) -> None:
    side = spellings[kind]
    for text in SEEN:
        assert side.spells(side.encode(text)) in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "metaspace"]
)  # which has no tokens for bytes
@settings(max_examples=30, deadline=None)
@given(data=st.binary(min_size=1, max_size=12))
def test_any_bytes_are_covered(spellings: dict[str, Spelling], kind: str, data: bytes) -> None:
    covered = spellings[kind].cover(data)
    assert covered is not None
    assert spellings[kind].spells(covered) == data


@pytest.mark.parametrize(("draft", "target"), PAIRS)
def test_every_text_goes_across_and_keeps_its_letters(
    spellings: dict[str, Spelling], draft: str, target: str
) -> None:
    pair = Sides(spellings[draft], spellings[target], NgramCache(1_000_000))
    for text in SEEN:
        tokens = pair.target.encode(text)
        whole, grown, leaping = reading(pair), reading(pair), reading(pair)
        for size in range(1, len(tokens) + 1):
            grown.follow(tokens[:size])
        for size in range(3, len(tokens) + 1, 17):
            leaping.follow(tokens[:size])
        leaping.settle()
        for one in (whole.follow(tokens), grown.tokens, leaping.follow(tokens)):
            shown = pair.draft.spells(one).lstrip(b" ")
            assert shown == pair.target.spells(tokens).lstrip(b" ")


@pytest.mark.parametrize(("draft", "target"), PAIRS)
def test_maps_join_tokens_of_the_same_bytes(spellings: dict[str, Spelling], draft: str, target: str) -> None:
    one, other = spellings[draft], spellings[target]
    mapping = map_vocabularies(one, other)
    joined = [(d, t) for d, t in enumerate(mapping.to_target.tolist()) if t >= 0]
    assert mapping.shared == len(joined) >= 20
    roles = {token: role for role, token in one.roles.items()}
    for d, t in joined:
        assert other.roles[roles[d]] == t if d in roles else one.pieces[d] == other.pieces[t]
    unjoined = {piece for d, piece in enumerate(one.pieces) if piece and mapping.to_target[d] < 0}
    assert not unjoined & set(other.by_bytes)


def test_tokens_that_steer_are_joined_by_what_they_do_and_never_by_their_letters() -> None:
    draft = spelling((b"a", None, None, b"<end>"), begin=1, end=2)
    target = spelling((None, b"<end>", b"a", None, None), begin=3, end=0)
    mapping = map_vocabularies(draft, target)
    assert mapping.to_target.tolist() == [2, 3, 0, 1]
    assert mapping.to_draft.tolist() == [2, 3, 0, 1, -1]


def test_overlap_counts_what_can_be_said() -> None:
    pair = sides(target=(*TARGET, b"z", b"az"))
    found = overlap(pair.draft, pair.target, pair.mapping)
    assert (found.draft, found.target, found.shared) == (5, 8, 3)
    assert (found.runs, found.unreachable) == (3, 2)


def test_large_vocabularies_are_joined_quickly() -> None:
    rng = random.Random(1)
    words = {bytes(rng.choices(b"abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(400_000)}
    one, other = (tuple(rng.sample(sorted(words), 150_000)) for _ in range(2))
    draft, target = spelling(one), spelling(other)
    mapping = map_vocabularies(draft, target)
    assert mapping.shared == len(set(one) & set(other))


class TestNgramCache:
    def test_a_run_is_found_piece_by_piece(self) -> None:
        cache = NgramCache(10_000)
        cache.learn(7, (1, 2, 3))
        cache.learn(8, (1, 2))
        trie = cache.trie
        node = trie.step(trie.step(ROOT, 1), 2)
        assert (trie.ends[node], trie.ends[trie.step(node, 3)], trie.step(node, 9)) == (8, 7, 0)
        assert (cache.run_of(7), cache.run_of(9)) == ((1, 2, 3), None)

    def test_what_was_used_longest_ago_goes_first(self) -> None:
        cache = NgramCache(20 * (ENTRY_BYTES + 2 * EDGE_BYTES))
        for token in range(100):
            cache.learn(0, (9, 9))
            cache.learn(token + 1, (token, token + 1))
            assert cache.nbytes <= 20 * (ENTRY_BYTES + 2 * EDGE_BYTES)
        assert cache.run_of(0) == (9, 9)
        assert cache.run_of(100) == (99, 100)
        assert cache.run_of(1) is None
        assert cache.trie.ends[cache.trie.step(cache.trie.step(ROOT, 0), 1)] != 1

    def test_the_budget_is_what_memory_says(self) -> None:
        import tracemalloc

        rng = random.Random(3)
        runs = [tuple(rng.choices(range(5000), k=rng.randint(2, 5))) for _ in range(20_000)]
        tracemalloc.start()
        cache = NgramCache(50_000_000)
        for token, run in enumerate(runs):
            cache.learn(token + 10_000, run)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert 0.5 * cache.nbytes < held <= cache.nbytes


class TestReading:
    def test_tokens_are_read_once(self) -> None:
        pair = sides()
        read = reading(pair)
        first = list(read.follow([0, 1, 5]))
        longer = read.follow([0, 1, 5, 2])
        assert longer[: len(first)] == first
        assert pair.draft.spells(longer) == b"ababaab"

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 5), max_size=40), min_size=1, max_size=6), st.integers(0, 40))
    def test_any_history_of_texts_ends_like_the_last_one_alone(
        self, turns: list[list[int]], cut: int
    ) -> None:
        pair = sides()
        read, tokens = reading(pair), list[int]()
        for turn in turns:
            tokens = tokens[:cut] + turn
            read.follow(tokens)
        assert pair.draft.spells(read.tokens) == pair.target.spells(tokens)

    def test_the_end_is_cut_anew_when_the_thread_is_lost(self) -> None:
        pair = sides(draft=(*DRAFT, b"abc"))
        read = reading(pair)
        read.follow([4])
        for token in (0, 1, 4):
            read.follow([4, 0, 1, 4][: [4, 0, 1, 4].index(token, 1) + 1])
        assert read.tokens == [2, 0, 1, 2]
        read.settle()
        assert read.tokens == [2, 5]
        assert pair.draft.spells(read.follow([4, 0, 1, 4, 1])) == b"cabcb"

    def test_a_text_begins_as_the_draft_model_wants_it(self) -> None:
        draft, target = spelling((b"a", None), begin=1), spelling((b"a", None), begin=1)
        assert reading(Sides(draft, target, NgramCache(1000))).follow([0, 0]) == [1, 0, 0]
        assert reading(Sides(draft, target, NgramCache(1000))).follow([1, 0]) == [1, 0]


class TestLattice:
    def lattice(self, learnt: bool = True) -> tuple[Sides, Lattice]:
        pair = sides(learnt=learnt)
        return pair, Lattice(pair, pair.ngrams)

    def test_both_readings_are_siblings(self) -> None:
        _, lattice = self.lattice()
        made = lattice.translate([4], TokenTree.chain([2, 0, 1], "chain", scores=(1.0, 0.9, 0.8)), WIDE)
        found = {(int(p), int(t)) for p, t in zip(made.tree.parents, made.tree.tokens, strict=True)}
        first = {t for p, t in found if p == 0}
        assert first == {0, 2}  # a, ab
        assert len(made.longer) == 1

    def test_a_piece_without_counterpart_is_split(self) -> None:
        _, lattice = self.lattice()
        made = lattice.translate([4], TokenTree.chain([2, 3], "chain", scores=(1.0, 0.9)), WIDE)
        assert made.tree.tokens.tolist() == [4, 1, 4]
        assert made.ends == (0, -1, 1)

    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.integers(1, 12), st.integers(1, 6))
    def test_every_branch_spells_what_was_drafted(self, pieces: list[int], nodes: int, depth: int) -> None:
        pair, lattice = self.lattice()
        draft = TokenTree.chain([2, *pieces], "chain", scores=(1.0, *[0.9] * len(pieces)))
        tree = lattice.translate([4], draft, DraftLimit(nodes, depth)).tree
        whole = pair.draft.spells(pieces)
        assert len(tree) - 1 <= nodes
        assert int(tree.depths().max()) <= depth
        assert all(whole.startswith(path) for path in texts(tree, pair.target))

    def test_without_a_cache_tokens_are_joined_one_for_one(self) -> None:
        pair = sides()
        lattice = Lattice(pair, None)
        draft = TokenTree.chain([2, 0, 1, 3, 0], "chain", scores=(1.0,) * 5)
        assert lattice.translate([4], draft, WIDE).tree.tokens.tolist() == [4, 0, 1]

    def test_a_tree_is_read_branch_by_branch(self) -> None:
        pair, lattice = self.lattice()
        draft = TokenTree.picked(
            [2, 0, 1, 1, 2, 0], [-1, 0, 0, 1, 1, 2], ["", *["tree"] * 5], [1.0] + [0.5] * 5
        )
        tree = lattice.translate([4], draft, WIDE).tree
        assert texts(tree, pair.target) == {b"a", b"b", b"ab", b"ac", b"ba"}

    def test_the_target_teaches_which_reading_it_takes(self) -> None:
        _, lattice = self.lattice()
        before = lattice.preference
        for _ in range(40):
            lattice.prefer(longer=False)
        assert lattice.preference < 0.3 < before

    def test_a_law_is_that_of_tokens_which_have_a_counterpart(self) -> None:
        law = Law(np.array([0, 1, 3, 4]), np.array([0.2, 0.3, 0.4, 0.1]))
        found = over_target(law, sides().mapping.to_target)
        assert found is not None
        assert found.ids.tolist() == [0, 1]
        assert found.probs.tolist() == pytest.approx([0.4, 0.6])
        assert over_target(Law(np.array([3]), np.ones(1)), sides().mapping.to_target) is None

    def test_probabilities_of_tokens_that_mean_the_same_add_up(self) -> None:
        law = Law(np.array([0, 1, 2]), np.array([0.2, 0.3, 0.5]))
        found = over_target(law, np.array([5, 4, 5], np.int32))
        assert found is not None
        assert found.ids.tolist() == [4, 5]
        assert found.probs.tolist() == pytest.approx([0.3, 0.7])


class TestRetokenizer:
    def test_what_was_drafted_is_cut_as_the_target_cuts_it(self) -> None:
        pair = sides()
        made = Retokenizer(pair.draft, pair.target).translate(
            [4], TokenTree.chain([2, 0, 1, 3], "chain", scores=(1.0, 0.9, 0.8, 0.7)), WIDE
        )
        assert made.tree.tokens.tolist() == [4, 2, 1, 4]
        assert made.ends == (0, 2, -1, 3)

    def test_nothing_is_proposed_where_the_text_before_would_be_cut_otherwise(self) -> None:
        pair = sides()
        draft = TokenTree.chain([0, 1], "chain", scores=(1.0, 0.9))
        assert len(Retokenizer(pair.draft, pair.target).translate([0], draft, WIDE).tree) == 1


class TestAsking:
    def test_wishes_about_shared_tokens_hold_for_the_draft_model(self) -> None:
        pair = sides()
        sampling = Sampling(
            temperature=1.0, logit_bias={1: 2.0, 2: 3.0}, banned=frozenset({4, 5}), phrases={(2, 4): -1.0}
        )
        request = Request(sampling, "coupled", 1, 0, 5)
        noise = TranslatedNoise(GumbelNoise(1, 0), pair.mapping, pair.ngrams)
        asked = translate_request(request, reading(pair), 7, noise, frozenset({3}))
        assert asked.sampling.logit_bias == {1: 2.0}
        assert asked.sampling.banned == {2, 3}
        assert asked.sampling.phrases == {(0, 1, 2): -1.0}
        assert (asked.prompt_length, asked.noise) == (7, noise)

    def test_noise_is_that_of_the_token_where_it_will_stand(self) -> None:
        pair, noise = sides(), GumbelNoise(5, 2)
        across = TranslatedNoise(noise, pair.mapping, pair.ngrams)
        across.start(draft=3, target=11)
        one = np.arange(2)
        assert across.after([2, 2, 2], one).tolist() == noise.at(11, one).tolist()
        # Behind "c" the next token; behind "a" the piece "b" would make "ab" at the same place.
        assert across.after([2, 2, 2, 2], one).tolist() == noise.at(12, one).tolist()
        assert across.after([2, 2, 2, 0], np.array([1])).tolist() == noise.at(11, np.array([2])).tolist()


@pytest.mark.shared
@pytest.mark.parametrize(("draft", "target"), list(permutations(REAL, 2)))
def test_real_texts_go_across_real_tokenizers(draft: str, target: str) -> None:
    for name in (draft, target):
        if not (SHARED / name).is_dir():
            pytest.skip(f"{name} is not here")
    pair = Sides(*(Spelling.of(Text.load(SHARED / name)) for name in (draft, target)), NgramCache(4_000_000))
    pair.prefill()
    text = (SHARED / "corpora" / "wikitext2_valid.txt").read_text()[:6000] + "naïve café, 日本語, 😀\n\tx = 1"
    tokens = pair.target.encode(text)
    whole, grown = reading(pair), reading(pair)
    for size in range(1, len(tokens) + 1, 5):
        grown.follow(tokens[:size])
    grown.follow(tokens)
    for read in (whole.follow(tokens), grown.tokens):
        assert pair.draft.spells(read).lstrip(b" ") == pair.target.spells(tokens).lstrip(b" ")
    lattice = Lattice(pair, pair.ngrams)
    for at in range(1, len(grown.tokens) - 6, 97):
        pieces = grown.tokens[at : at + 6]
        chain = TokenTree.chain([0, *pieces], "chain", scores=[1.0] + [0.9] * 6)
        tree = lattice.translate(tokens[-1:], chain, WIDE).tree
        spelled = pair.draft.spells(pieces)
        assert len(tree) > 1
        assert all(spelled.startswith(path) for path in texts(tree, pair.target))


def test_a_model_whose_logits_are_wider_than_its_tokenizer_is_no_stranger() -> None:
    pair = sides(draft=(*DRAFT, None, None), target=(*TARGET, None))
    ids, noise = np.arange(7), TranslatedNoise(GumbelNoise(1, 0), pair.mapping, pair.ngrams)
    assert noise.after([2], ids).shape == noise.at(1, ids).shape == noise.roughly(1, ids).shape == (7,)
    law = over_target(Law(ids, np.full(7, 1 / 7)), pair.mapping.to_target)
    assert law is not None
    assert law.ids.tolist() == [0, 1, 4]
    assert reading(pair).follow([0, 6, 1]) == [0, 1]


@pytest.mark.parametrize("translation", ["ngram", "direct", "intersection", "text"])
def test_where_the_answer_depends_on_drafts_what_of_the_prompt_was_read_before_does_not(
    translation: Translation,
) -> None:
    drafts = []
    for shown in (0, 40):
        drafter = across(TableChain(len(DRAFT)), translation)
        drafter.begin(Request(Sampling(temperature=1.0), "rejection", 3, 1, 60))
        prompt = [4, 5, 3, 2] * 15
        chain = TokenTree.chain(prompt[:shown] or [0])
        unscored = Scored(np.zeros((0, 6), np.float32))
        if shown:
            drafter.observe(Outcome(chain, unscored, Verdict(tuple(range(shown)), prompt[shown], 0)))
        drafts.append(drafter.propose(prompt, DraftLimit(12, 5)))
    assert same(*drafts)


def test_only_shared_tokens_are_drafted_where_that_was_wished() -> None:
    for translation, others in (("intersection", set()), ("direct", {3, 4})):
        drafter, drafted = TableChain(len(DRAFT)), set[int]()
        border = across(drafter, translation)
        border.begin(Request(Sampling(temperature=1.0), "rejection", 3, 1, 3))
        inner, propose = drafter, drafter.propose

        def watched(
            tokens: Sequence[int], limit: DraftLimit, propose: Any = propose, drafted: Any = drafted
        ) -> TokenTree:
            made = propose(tokens, limit)
            drafted.update(made.tokens.tolist()[1:])
            return made

        inner.propose = watched  # type: ignore[method-assign]
        for place in range(40):
            border.propose([0, 1, 4] + [place % 6] * (place + 1), WIDE)
        assert drafted & {3, 4} == others


def test_a_draft_whose_passes_cost_more_than_the_target_is_not_made() -> None:
    border = across(TableChain(len(DRAFT)))
    border.begin(GREEDY)
    assert len(border.propose([0, 1, 4], DraftLimit(8, 8, 0.9, 0.1))) == 1
    assert len(border.propose([0, 1, 4], DraftLimit(8, 8, 0.01, 0.01))) > 1

"""The model-free drafters one by one: what they propose, and that they follow the text wherever it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from draft_models import draft_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored, Verdict, common_prefix
from paceline.runtime.drafters.automaton import SuffixAutomaton
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.history import Index, follow
from paceline.runtime.drafters.lookup import PairIndex, PromptLookup
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

texts = st.lists(st.integers(0, 2), max_size=40)
FOLLOWERS: list[Callable[[], Drafter]] = [PromptLookup, Suffix]


def words(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(int(tree.tokens[n]) for n in tree.path(node)) for node in range(len(tree))}


def shape(tree: TokenTree) -> tuple[list[int], list[int]]:
    return tree.tokens.tolist(), tree.parents.tolist()


# -- indexes of the text -------------------------------------------------------------------------------------


def contents(index: Index) -> object:
    """Everything an index holds; of the automaton also the order of its successors, which breaks ties."""
    if isinstance(index, PairIndex):
        return index.tokens, index._before, index._latest
    assert isinstance(index, SuffixAutomaton)
    following = [list(n.items()) for n in index.next]
    return index.tokens, following, index.link, index.length, index.count, index._last, index._short


@pytest.mark.parametrize("make", [PairIndex, SuffixAutomaton, lambda: SuffixAutomaton(3)])
@settings(deadline=None)
@given(path=st.lists(texts, min_size=1, max_size=6), capacity=st.integers(4, 50))
def test_an_index_depends_on_the_text_and_not_on_the_way_to_it(
    make: Callable[[], Index], path: list[list[int]], capacity: int
) -> None:
    travelled, fresh = make(), make()
    for text in path:
        follow(travelled, text, capacity)
    follow(fresh, path[-1], capacity)
    assert contents(travelled) == contents(fresh)
    held = len(fresh.tokens)
    assert fresh.tokens == path[-1][len(path[-1]) - held :]
    assert held == len(path[-1]) or capacity // 2 <= held <= capacity


@settings(deadline=None)
@given(texts, texts)
def test_the_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    n = common_prefix(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


def occurrences(text: list[int], word: list[int]) -> int:
    return sum(text[i : i + len(word)] == word for i in range(len(text) - len(word) + 1))


@settings(deadline=None)
@given(texts, st.integers(1, 8), st.data())
def test_the_automaton_counts_every_substring_up_to_its_depth(
    text: list[int], depth: int, data: st.DataObject
) -> None:
    automaton = SuffixAutomaton(depth)
    follow(automaton, text, 100)
    if text:
        start = data.draw(st.integers(0, len(text) - 1))
        word = text[start : start + data.draw(st.integers(1, depth))]
        state = 0
        for token in word:
            state = automaton.next[state][token]
        assert automaton.count[state] == occurrences(text, word)
    _, length = automaton.seen_before(depth)
    repeated = [n for n in range(1, min(depth, len(text)) + 1) if occurrences(text, text[-n:]) > 1]
    assert length == max(repeated, default=0)


@settings(deadline=None)
@example([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
@given(texts)
def test_the_pair_index_finds_the_longest_and_latest_place_for_every_continuation(text: list[int]) -> None:
    index = PairIndex()
    follow(index, text, 100)
    best: dict[int, tuple[int, int]] = {}
    for place in range(2, len(text)):
        length = 0
        while length < min(place, 6) and text[place - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        if length >= 2:
            best[text[place]] = max(best.get(text[place], (0, 0)), (length, place))
    found = {text[place]: (length, place) for length, place in index.matches(6, 1000)}
    stopped = any(length == 6 for length, _ in found.values())
    # The search ends at the first match that is as long as any may be: others may not be at their best yet.
    assert all(best[token] == match for token, match in found.items() if match[0] == 6)
    assert stopped or found == best


# -- lookup and suffix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FOLLOWERS)
def test_what_followed_before_is_drafted_again(make: Callable[[], Drafter]) -> None:
    text = [5, 6, 7, 8, 9, 1, 2, 5, 6, 7]
    tree = make().propose(text, DraftLimit(3, 3))
    assert tree.tokens.tolist() == [7, 8, 9, 1]
    assert tree.is_chain()


@pytest.mark.parametrize("make", FOLLOWERS)
def test_a_text_without_repetition_is_decoded_plainly(make: Callable[[], Drafter]) -> None:
    assert len(make().propose(list(range(50)), DraftLimit(8, 8))) == 1
    assert len(make().propose([3], DraftLimit(8, 8))) == 1


@pytest.mark.parametrize("make", FOLLOWERS)
def test_two_continuations_become_branches_when_there_is_room(make: Callable[[], Drafter]) -> None:
    text = [*[1, 2, 3, 4] * 3, 9, *[1, 2, 3, 5] * 3, 9, 1, 2, 3]
    found = words(make().propose(text, DraftLimit(8, 4)))
    assert {(3, 4), (3, 5)} <= found


def test_a_run_of_one_token_is_copied_beyond_the_end_of_the_text() -> None:
    assert PromptLookup(worth=0.01).propose([7, 1, 1, 1, 1], DraftLimit(6, 6)).tokens.tolist() == [1] * 7
    assert PromptLookup(worth=0.01).propose([3, 4, 3, 4, 3, 4], DraftLimit(6, 6)).tokens.tolist() == [
        4,
        3,
        4,
        3,
        4,
        3,
        4,
    ]


def test_lookup_prefers_the_longer_match_to_the_later_one() -> None:
    text = [1, 2, 3, 4, 8, 2, 3, 5, 8, 1, 2, 3]
    assert PromptLookup().propose(text, DraftLimit(1, 1)).tokens.tolist() == [3, 4]


def test_lookup_prefers_the_later_of_two_equal_matches() -> None:
    text = [2, 3, 4, 8, 2, 3, 5, 9, 2, 3]
    assert PromptLookup().propose(text, DraftLimit(1, 1)).tokens.tolist() == [3, 5]


def test_one_matching_token_is_too_little_for_lookup_but_suffix_counts_it() -> None:
    text = [1, 2, 8, 1, 2, 9, 1, 2, 7, 5, 1]
    assert len(PromptLookup().propose(text, DraftLimit(4, 4))) == 1
    assert Suffix().propose(text, DraftLimit(1, 1)).tokens.tolist() == [1, 2]


def test_suffix_prefers_what_followed_most_often() -> None:
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 3, 8, 1, 2, 3, 7, 1, 2, 4, 6, 1, 2]
    assert Suffix(worth=0.02).propose(text, DraftLimit(1, 1)).tokens.tolist() == [2, 3]


def test_suffix_drafts_more_the_longer_the_match() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 1000, 60).tolist()
    lengths = [
        len(Suffix().propose([*text, *range(2000, 2003), *text[:n]], DraftLimit(30, 30)))
        for n in (1, 3, 8, 12)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("make", FOLLOWERS)
def test_after_a_reset_nothing_is_left(make: Callable[[], Drafter]) -> None:
    drafter = make()
    drafter.propose([1, 2, 3] * 9, DraftLimit(4, 4))
    drafter.reset()
    assert len(drafter.propose([9, 1, 2], DraftLimit(4, 4))) == 1


@pytest.mark.parametrize("make", [PromptLookup, Suffix])
def test_a_window_too_small_to_hold_a_match_is_an_error(make: Callable[..., Drafter]) -> None:
    with pytest.raises(ValueError, match="use 4 or more"):
        make(capacity=3)


@pytest.mark.parametrize(("make", "index"), [(PromptLookup, "_index"), (Suffix, "_text")])
def test_a_long_text_never_takes_more_than_the_capacity(make: Callable[..., Drafter], index: str) -> None:
    drafter = make(capacity=32)
    text = np.random.default_rng(0).integers(0, 4, 200).tolist()
    for end in range(1, 200):
        drafter.propose(text[:end], DraftLimit(4, 4))
        assert len(getattr(drafter, index).tokens) <= 32


def test_plain_proposes_the_last_token_alone() -> None:
    assert shape(Plain().propose([4, 5], DraftLimit(9, 9))) == ([5], [-1])


# -- recycle -------------------------------------------------------------------------------------------------

VOCAB = 12


def rows(*best: list[int]) -> np.ndarray:
    """One row for each list; its tokens in descending order, far above the rest."""
    logits = np.random.default_rng(0).normal(size=(len(best), VOCAB)).astype(np.float32) - 40
    for row, tokens in zip(logits, best, strict=True):
        row[tokens] = 10 - 4 * np.arange(len(tokens))
    return logits


def seen(tree: TokenTree, logits: np.ndarray, path: tuple[int, ...], token: int) -> Outcome:
    return Outcome(tree, Scored(logits), Verdict(path, token, len(path)))


def prompt(*tokens: int) -> Outcome:
    chain = TokenTree.chain(tokens[:-1])
    return seen(chain, np.zeros((0, VOCAB), np.float32), tuple(range(len(chain))), tokens[-1])


def test_recycle_learns_from_rejected_nodes_too() -> None:
    drafter = Recycle(VOCAB)
    tree = TokenTree.chain([1, 2, 3], "recycle")
    drafter.observe(seen(tree, rows([7], [8, 9], [4]), (0,), 7))
    assert drafter.propose([5, 2], DraftLimit(1, 1)).tokens.tolist() == [2, 8]
    assert drafter.propose([5, 1], DraftLimit(1, 1)).tokens.tolist() == [1, 7]
    assert (3, 4) in words(drafter.propose([3], DraftLimit(4, 1)))


def test_recycle_follows_successors_level_by_level() -> None:
    drafter = Recycle(VOCAB)
    drafter.observe(seen(TokenTree.chain([1, 2, 3]), rows([2], [3], [4]), (0, 1, 2), 4))
    assert (1, 2, 3, 4) in words(drafter.propose([1], DraftLimit(9, 3)))
    assert max(map(len, words(drafter.propose([1], DraftLimit(9, 2))))) == 3


def test_where_a_token_stands_twice_the_accepted_node_is_believed() -> None:
    drafter = Recycle(VOCAB)
    tree = TokenTree.picked([1, 2, 2], [-1, 0, 1], ["", "x", "x"])
    drafter.observe(seen(tree, rows([2], [5], [6]), (0, 1), 5))
    assert drafter.propose([2], DraftLimit(1, 1)).tokens.tolist() == [2, 5]


def test_a_prompt_without_logits_teaches_its_pairs_and_logits_replace_them() -> None:
    drafter = Recycle(VOCAB)
    drafter.observe(prompt(1, 2, 3, 1, 4))
    assert drafter.propose([2], DraftLimit(1, 1)).tokens.tolist() == [2, 3]
    assert drafter.propose([1], DraftLimit(1, 1)).tokens.tolist() == [1, 4]
    assert {(1, 4), (1, 2)} <= words(drafter.propose([1], DraftLimit(4, 1)))
    drafter.observe(seen(TokenTree.root(1), rows([8]), (0,), 8))
    assert drafter.propose([1], DraftLimit(1, 1)).tokens.tolist() == [1, 8]


@settings(deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60))
def test_successors_of_a_token_never_repeat(tokens: list[int]) -> None:
    drafter = Recycle(VOCAB, width=4)
    drafter.observe(prompt(*tokens))
    for row in drafter._next:
        known = [t for t in row.tolist() if t >= 0]
        assert len(known) == len(set(known))
        assert row[: len(known)].tolist() == known, "empty places come last"


def test_recycle_learns_which_ranks_come_true() -> None:
    drafter = Recycle(VOCAB, worth=0.02)
    lesson = rows([2, 3, 4], [1, 5, 6])
    for _ in range(60):
        drafter.observe(seen(TokenTree.chain([1, 3]), lesson, (0, 1), 5))
    tree = drafter.propose([1], DraftLimit(2, 2))
    assert tree.tokens.tolist() == [1, 3, 5], "the second best was right every time"


@pytest.mark.parametrize("broken", [np.nan, -np.inf, np.inf])
def test_broken_logits_neither_crash_nor_leave_the_vocabulary(broken: float) -> None:
    drafter = Recycle(VOCAB)
    logits = rows([2], [3])
    logits[1] = broken
    drafter.observe(seen(TokenTree.chain([1, 2]), logits, (0, 1), 3))
    tree = drafter.propose([1], DraftLimit(9, 4))
    assert 0 <= tree.tokens.min() <= tree.tokens.max() < VOCAB


def test_padding_of_the_target_beyond_the_vocabulary_is_never_drafted() -> None:
    drafter = Recycle(VOCAB - 4)
    drafter.observe(seen(TokenTree.root(1), rows([VOCAB - 1, 2]), (0,), 2))
    assert drafter.propose([1], DraftLimit(1, 1)).tokens.tolist() == [1, 2]


def test_the_footprint_of_the_matrix_is_what_it_holds() -> None:
    assert Recycle(32_000).footprint(DraftLimit(4, 4)) == 32_000 * 8 * 5


def test_a_matrix_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="use 1 or more"):
        Recycle(0)


# -- draft models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ChainModel, lambda model, vocab: TreeModel(model, vocab, frontier=3)])
def test_a_draft_model_reads_on_past_tokens_that_it_does_not_know(make: Callable[..., Drafter]) -> None:
    model = draft_model()
    drafter = make(model, model.part.vocab + 500)
    drafter.begin(Request(Sampling(), "coupled", 0, 0, 3))
    text = [1, model.part.vocab + 7, 2]
    for more in ([], [3], [model.part.vocab, 4]):
        text = [*text, *more]
        tree = drafter.propose(text, DraftLimit(4, 3))
        assert len(tree) > 1
        assert tree.tokens[0] == text[-1]
        assert tree.tokens[1:].max() < model.part.vocab
        assert model.length >= len(text)


@pytest.mark.parametrize("accept", ["rejection", "block", "typical"])
def test_where_the_draft_changes_the_tokens_recycling_starts_from_nothing(accept: str) -> None:
    sampled = Request(Sampling(1.0), accept, 0, 0, 2)
    drafter = Recycle(50)
    drafter.begin(sampled)
    first = shape(drafter.propose([1, 2], DraftLimit(8, 4)))
    rows = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    drafter.observe(Outcome(TokenTree.root(2), Scored(rows), Verdict((0,), 3, 0)))
    assert shape(drafter.propose([1, 2], DraftLimit(8, 4))) != first
    drafter.reset()
    assert shape(drafter.propose([1, 2], DraftLimit(8, 4))) != first  # it belongs to the model
    drafter.begin(sampled)
    assert shape(drafter.propose([1, 2], DraftLimit(8, 4))) == first


def test_where_the_draft_changes_the_tokens_the_store_is_not_asked(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path / "store", "words")
    store.remember([1, 2, 3, 4, 5, 6])
    store.remember([9, 9, 9, 9])
    drafter = Suffix(store)
    for accept, expected in (("coupled", True), ("rejection", False)):
        drafter.begin(Request(Sampling(1.0), accept, 0, 0, 2))
        assert (len(drafter.propose([7, 1, 2, 3], DraftLimit(8, 4))) > 1) == expected

"""Token trees: shapes, masks, and what pruning and merging do to laws that children were sampled from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.law import Law
from paceline.runtime.tree import TokenTree

VOCAB = 5


def law(*ids: int) -> Law:
    return Law(np.array(sorted(ids), np.int64), np.full(len(ids), 1 / len(ids)))


@st.composite
def trees(draw: st.DrawFn, most: int = 14) -> TokenTree:
    """Any tree with root 0: some nodes sampled their first children, without replacement."""
    tokens, parents, order, sources = [0], [-1], [-1], [""]
    dists: dict[int, Law] = {}
    count = draw(st.integers(0, most))
    drawn: dict[int, list[int]] = {}
    for _ in range(count):
        parent = draw(st.integers(0, len(tokens) - 1))
        token = draw(st.integers(0, VOCAB - 1))
        taken = [t for t, p in zip(tokens, parents, strict=True) if p == parent]
        if token in taken:
            continue
        place = -1
        if draw(st.booleans()):
            dists.setdefault(parent, law(*range(VOCAB)))
            place = len(drawn.setdefault(parent, []))
            drawn[parent].append(token)
        tokens.append(token)
        parents.append(parent)
        order.append(place)
        sources.append("ab"[draw(st.integers(0, 1))])
    return TokenTree(
        np.array(tokens), np.array(parents, np.int32), np.array(order, np.int32), tuple(sources), dists
    )


def words(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every path as its tokens."""
    return {tuple(int(tree.tokens[n]) for n in tree.path(node)) for node in range(len(tree))}


def draws(tree: TokenTree) -> dict[tuple[int, ...], tuple[Law, list[int]]]:
    """For every sampled node, by its path: the law and its drawn children's tokens in order."""
    found = {}
    for node, dist in tree.dists.items():
        children = [c for c in tree.children(node) if tree.draw[c] >= 0]
        path = tuple(int(tree.tokens[n]) for n in tree.path(node))
        found[path] = (dist, [int(tree.tokens[c]) for c in children])
    return found


def check_whole(tree: TokenTree) -> None:
    """Types and links are right, and nothing is marked as drawn without a law."""
    n = len(tree)
    assert tree.tokens.dtype == np.int64
    assert tree.parents.dtype == tree.draw.dtype == np.int32
    assert len(tree.tokens) == len(tree.parents) == len(tree.draw) == len(tree.sources) == n
    assert tree.parents[0] == -1
    assert tree.sources[0] == ""
    for node in range(1, n):
        assert 0 <= tree.parents[node] < node
        assert tree.draw[node] < 0 or int(tree.parents[node]) in tree.dists
    assert all(0 <= node < n for node in tree.dists)


@settings(deadline=None)
@given(trees())
def test_mask_depths_and_children_agree_with_the_paths(tree: TokenTree) -> None:
    mask, depths = tree.mask(), tree.depths()
    assert mask.dtype == np.bool_
    assert depths.dtype == np.int64
    for node in range(len(tree)):
        assert tuple(np.flatnonzero(mask[node])) == tree.path(node)
        assert depths[node] == len(tree.path(node)) - 1
        assert sorted(tree.children(node)) == [c for c in range(len(tree)) if tree.parents[c] == node]
    assert sum(len(tree.children(node)) for node in range(len(tree))) == len(tree) - 1
    assert tree.is_chain() == all(tree.parents[node] == node - 1 for node in range(len(tree)))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 300])
def test_a_chain_has_the_mask_of_plain_causality(n: int) -> None:
    tree = TokenTree.chain(list(range(n)), "x")
    assert tree.is_chain()
    assert (tree.mask() == np.tri(n, dtype=np.bool_)).all()
    assert tree.depths().tolist() == list(range(n))
    assert tree.sources == ("", *["x"] * (n - 1))
    check_whole(tree)


def test_chains_share_arrays_that_nobody_can_write_to() -> None:
    one = TokenTree.chain([1, 2, 3])
    for array in (one.parents, one.draw, one.mask(), one.depths()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


def test_a_wide_tree_has_a_mask_beyond_one_machine_word() -> None:
    tree = TokenTree.picked(list(range(130)), [-1, *[0] * 64, *range(1, 66)], ["", *["x"] * 129])
    for node in (0, 64, 65, 128, 129):
        assert tuple(np.flatnonzero(tree.mask()[node])) == tree.path(node)


def test_a_sampled_chain_keeps_its_laws_and_the_rest_is_picked() -> None:
    tree = TokenTree.chain([3, 1, 2, 0], "x", {0: law(1), 2: law(0)})
    assert tree.draw.tolist() == [-1, 0, -1, 0]
    assert sorted(tree.dists) == [0, 2]
    check_whole(tree)


def test_drawn_children_come_first_in_the_order_they_were_drawn() -> None:
    parents, order = np.array([-1, 0, 0, 0, 0], np.int32), np.array([-1, -1, 1, 0, -1], np.int32)
    tree = TokenTree(np.array([0, 4, 2, 3, 1]), parents, order, ("", *"abcd"), {0: law(2, 3)})
    assert tree.children(0) == [3, 2, 1, 4]


@settings(deadline=None)
@given(trees(), st.data())
def test_pruning_keeps_whole_paths_and_only_laws_that_lost_no_child(
    tree: TokenTree, data: st.DataObject
) -> None:
    keep = data.draw(st.sets(st.integers(0, len(tree) - 1)))
    pruned = tree.prune(sorted(keep))
    check_whole(pruned)
    stays = {n for n in range(len(tree)) if all(step in keep for step in tree.path(n)[1:])}
    assert words(pruned) == {tuple(int(tree.tokens[n]) for n in tree.path(node)) for node in stays}
    assert len(pruned) == len(stays)
    before, after = draws(tree), draws(pruned)
    for path, (dist, tokens) in before.items():
        if path in words(pruned):
            whole = all((*path, token) in words(pruned) for token in tokens)
            assert (path in after) == whole
            assert not whole or after[path] == (dist, tokens)
    assert set(after) <= set(before)


@settings(deadline=None)
@given(trees())
def test_pruning_by_flags_equals_pruning_by_indices_and_all_is_the_tree_itself(tree: TokenTree) -> None:
    flags = np.arange(len(tree)) % 3 != 1
    one, other = tree.prune(flags), tree.prune(np.flatnonzero(flags))
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.parents.tolist() == other.parents.tolist()
    whole = tree.prune(range(len(tree)))
    assert (whole.tokens.tolist(), whole.draw.tolist()) == (tree.tokens.tolist(), tree.draw.tolist())
    assert (whole.sources, whole.dists) == (tree.sources, tree.dists)
    assert len(tree.prune([])) == 1


@settings(deadline=None)
@given(trees(), trees())
def test_merging_gives_the_union_and_every_law_keeps_all_its_draws(one: TokenTree, other: TokenTree) -> None:
    merged = one.merge(other)
    check_whole(merged)
    assert words(merged) == words(one) | words(other)
    assert len(merged) == len(words(merged)), "a node that both propose stands once"
    mine, theirs = draws(one), draws(other)
    assert draws(merged) == {**theirs, **mine}
    for node in range(len(one)):
        assert merged.tokens[node] == one.tokens[node]
        assert merged.sources[node] == one.sources[node]


@settings(deadline=None)
@given(trees(), trees())
def test_merging_changes_neither_tree(one: TokenTree, other: TokenTree) -> None:
    before = [(t.tokens.tolist(), t.parents.tolist(), t.draw.tolist(), dict(t.dists)) for t in (one, other)]
    one.merge(other)
    assert before == [
        (t.tokens.tolist(), t.parents.tolist(), t.draw.tolist(), dict(t.dists)) for t in (one, other)
    ]


@settings(max_examples=50, deadline=None)
@given(trees(most=9), trees(most=9), trees(most=9))
def test_merging_is_associative_in_its_paths_and_laws(a: TokenTree, b: TokenTree, c: TokenTree) -> None:
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert words(left) == words(right)
    assert draws(left) == draws(right)


@settings(deadline=None)
@given(trees())
def test_merging_with_itself_or_with_nothing_changes_nothing(tree: TokenTree) -> None:
    for merged in (tree.merge(tree), tree.merge(TokenTree.root(0))):
        assert merged.tokens.tolist() == tree.tokens.tolist()
        assert merged.draw.tolist() == tree.draw.tolist()
        assert draws(merged) == draws(tree)


def test_a_sampled_chain_merged_into_picks_keeps_its_law() -> None:
    picks = TokenTree.picked([0, 1, 2], [-1, 0, 0], ["", "p", "p"])
    chain = TokenTree.chain([0, 2, 3], "c", {0: law(2, 3), 1: law(3, 4)})
    merged = picks.merge(chain)
    assert merged.tokens.tolist() == [0, 1, 2, 3]
    assert merged.draw.tolist() == [-1, -1, 0, 0]
    assert sorted(merged.dists) == [0, 2]
    assert merged.sources == ("", "p", "p", "c")


def test_where_both_sampled_below_one_node_the_first_law_stays_and_the_other_draw_becomes_a_pick() -> None:
    one = TokenTree.chain([0, 1, 2], "a", {0: law(1), 1: law(2)})
    other = TokenTree.chain([0, 3, 4], "b", {0: law(3), 1: law(4)})
    merged = one.merge(other)
    assert merged.tokens.tolist() == [0, 1, 2, 3, 4]
    assert merged.draw.tolist() == [-1, 0, 0, -1, 0]
    assert {node: dist.ids.tolist() for node, dist in merged.dists.items()} == {0: [1], 1: [2], 3: [4]}


def test_a_token_drawn_twice_stays_two_draws() -> None:
    twice = TokenTree(
        np.array([0, 1, 1]),
        np.array([-1, 0, 0], np.int32),
        np.array([-1, 0, 1], np.int32),
        ("", "a", "a"),
        {0: law(1)},
    )
    picks = TokenTree.picked([0, 1], [-1, 0], ["", "p"])
    for merged in (twice.merge(picks), picks.merge(twice)):
        assert merged.tokens.tolist() == [0, 1, 1]
        assert merged.draw.tolist() == [-1, 0, 1]
    assert twice.prune([1]).draw.tolist() == [-1, -1]


def test_trees_of_different_roots_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="different roots"):
        TokenTree.root(1).merge(TokenTree.root(2))


def test_the_checks_of_this_file_notice_a_law_without_its_draw() -> None:
    tree = TokenTree.chain([0, 1], "a", {0: law(1)})
    broken = TokenTree(tree.tokens, tree.parents, tree.draw, tree.sources, {})
    with pytest.raises(AssertionError):
        check_whole(broken)

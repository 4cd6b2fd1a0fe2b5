"""The laws of the house, for every drafter. Each check is a function that a lawless drafter must fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_rounds import GREEDY, WIDE, Wrapped, every_drafter, prompt_of, rounds, same, scored, text, world
from law_subjects import SUBJECTS, VOCAB

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Verdict
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

# -- trees keep their promises -------------------------------------------------------------------------------


def check_limits(drafter: Drafter, seed: int) -> None:
    drafter.begin(GREEDY)
    for tokens, _ in rounds(drafter, seed, 24):
        for limit in (
            DraftLimit(0, 4),
            DraftLimit(4, 0),
            DraftLimit(1, 1),
            DraftLimit(3, 9),
            DraftLimit(9, 2),
        ):
            tree = drafter.propose(tokens, limit)
            parents = tree.parents.tolist()
            assert len(tree) - 1 <= limit.nodes
            assert int(tree.depths().max()) <= limit.depth
            assert tree.tokens[0] == tokens[-1]
            assert parents[0] == -1
            assert all(0 <= parent < node for node, parent in enumerate(parents[1:], 1))
            if drafter.name != "auto":  # its nodes carry the names of those it chooses from
                names = set(drafter.name.split(","))
                assert all(set(source.split(",")) <= names for source in tree.sources[1:])
            assert 0 <= tree.tokens.min() <= tree.tokens.max() < VOCAB


@every_drafter
def test_a_proposal_stays_within_its_limit_and_carries_its_name(name: str) -> None:
    for seed in range(6):
        check_limits(SUBJECTS[name](), seed)


def test_a_drafter_that_ignores_its_limit_is_caught() -> None:
    class Greedy(Wrapped):
        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            return self.inner.propose(tokens, DraftLimit(limit.nodes + 2, limit.depth + 2))

    with pytest.raises(AssertionError):
        check_limits(Greedy(SUBJECTS["suffix"]()), 0)


# -- law 1 ---------------------------------------------------------------------------------------------------


def greedy_text(seed: int, room: int) -> list[int]:
    """What the table model says, without any of the machinery."""
    tokens, model = prompt_of(seed), world(seed)
    for _ in range(room):
        tokens.append(int(model.row(tokens).argmax()))
    return tokens


def check_plain_decoding(drafter: Drafter, seed: int) -> None:
    emitted = [len(outcome.verdict.path) for _, outcome in rounds(drafter, seed, 16)]
    assert emitted == [1] * 16
    assert text(drafter, seed, 16) == greedy_text(seed, 16)


def test_a_one_node_tree_is_plain_decoding() -> None:
    for seed in range(10):
        check_plain_decoding(Plain(), seed)


def test_a_drafter_that_drafts_is_not_plain() -> None:
    with pytest.raises(AssertionError):
        check_plain_decoding(SUBJECTS["suffix"](), 0)


# -- law 2 ---------------------------------------------------------------------------------------------------


def check_function(make: Callable[[], Drafter], seed: int) -> None:
    """Asking twice, or about another text in between, changes nothing; neither does the way to a text."""
    drafter, fresh = make(), make()
    history: list[tuple[list[int], TokenTree, Outcome]] = []
    tree = None
    for d in (drafter, fresh):
        d.begin(GREEDY)
    stale = list(rounds(make(), seed + 1, 14))[-1][0]
    for tokens, outcome in rounds(make(), seed, 20):
        before = tokens[: len(tokens) - len(outcome.verdict.path)]
        for _ in range(2):
            again = drafter.propose(before, WIDE)
            assert tree is None or same(again, tree), "the same question had two answers"
            tree = again
        drafter.propose(stale, WIDE)
        drafter.propose(before[: len(before) // 2 + 1], WIDE)
        assert same(drafter.propose(before, WIDE), tree), "another question changed the answer"
        tree = None
        history.append((before, drafter.propose(before, WIDE), outcome))
        drafter.observe(outcome)
    for before, answer, outcome in history:
        assert same(fresh.propose(before, WIDE), answer), (
            "a fresh drafter that saw the same answers otherwise"
        )
        fresh.observe(outcome)


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if not subject.timed])
def test_propose_is_a_function_of_the_text_the_limit_and_what_was_observed(name: str) -> None:
    for seed in range(4):
        check_function(SUBJECTS[name], seed)


def test_a_drafter_that_does_not_notice_another_text_is_caught() -> None:
    class Forgetful(Wrapped):
        def __init__(self) -> None:
            super().__init__(SUBJECTS["lookup"]())
            self.seen: list[int] = []

        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            self.seen.extend(tokens[len(self.seen) :])
            self.seen[-1:] = tokens[-1:]
            return self.inner.propose(self.seen, limit)

    with pytest.raises(AssertionError, match="another question changed the answer"):
        check_function(Forgetful, 0)


# -- law 3 ---------------------------------------------------------------------------------------------------


class Witness(Wrapped):
    """Holds the loop to its word: every pass is observed once, in order, with the tree that was proposed."""

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self.seen: list[int] = []
        self.waiting: TokenTree | None = None

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        assert self.waiting is None, "a pass was not observed"
        assert self.seen == list(tokens[:-1]), "what was observed is not what was committed"
        self.waiting = self.inner.propose(tokens, limit)
        return self.waiting

    def observe(self, outcome: Outcome) -> None:
        assert self.waiting is None or outcome.tree is self.waiting
        self.seen += [int(outcome.tree.tokens[node]) for node in outcome.verdict.path]
        self.waiting = None
        self.inner.observe(outcome)


@every_drafter
def test_observe_follows_every_pass_the_prompts_included(name: str) -> None:
    for seed in range(3):
        text(Witness(SUBJECTS[name]()), seed, 20)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_pass_that_is_not_observed_is_caught(lost: int) -> None:
    class Deaf(Witness):
        heard = 0

        def observe(self, outcome: Outcome) -> None:
            self.heard += 1
            if self.heard != lost + 1:
                super().observe(outcome)

    with pytest.raises(AssertionError):
        text(Deaf(SUBJECTS["lookup"]()), 0, 20)


# -- law 6 ---------------------------------------------------------------------------------------------------


class Watched(Wrapped):
    """Fails when the verifier's generator, or numpy's global one, moves while the drafter works."""

    def __init__(self, inner: Drafter, rng: np.random.Generator) -> None:
        super().__init__(inner)
        self.rng = rng

    def _state(self) -> str:
        return repr(self.rng.bit_generator.state) + repr(np.random.get_state())

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        before = self._state()
        tree = super().propose(tokens, limit)
        assert self._state() == before
        return tree

    def observe(self, outcome: Outcome) -> None:
        before = self._state()
        super().observe(outcome)
        assert self._state() == before


def check_generator(make: Callable[[np.random.Generator], Drafter]) -> None:
    rng = np.random.default_rng(5)
    request = replace(GREEDY, sampling=Sampling(temperature=1.0), accept="rejection")
    list(rounds(Watched(make(rng), rng), 2, 16, request, rng))


@every_drafter
def test_a_drafter_never_touches_the_verifiers_generator(name: str) -> None:
    check_generator(lambda rng: SUBJECTS[name]())


def test_a_drafter_that_borrows_the_verifiers_generator_is_caught() -> None:
    class Thief(Wrapped):
        def __init__(self, rng: np.random.Generator) -> None:
            super().__init__(Plain())
            self.rng = rng

        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            return TokenTree.chain([tokens[-1], int(self.rng.integers(VOCAB))], self.name)

    with pytest.raises(AssertionError):
        check_generator(Thief)


# -- law 8 ---------------------------------------------------------------------------------------------------


def check_committed_only(make: Callable[[], Drafter], seed: int) -> None:
    """Rejected tokens leave no trace: drafters that saw different ones propose the same."""
    one, other = make(), make()
    tokens = prompt_of(seed)
    rng = np.random.default_rng(seed)
    for d in (one, other):
        d.begin(GREEDY)
    for _ in range(20):
        following = int(rng.integers(VOCAB))
        for drafter, wrong in ((one, 1), (other, 2)):
            tree = TokenTree.picked(
                [tokens[-1], *[(following + wrong) % VOCAB] * 3], [-1, 0, 1, 2], ["", *"abc"]
            )
            drafter.observe(Outcome(tree, scored(tree, seed), Verdict((0,), following, 1)))
        tokens.append(following)
        assert same(one.propose(tokens, WIDE), other.propose(tokens, WIDE))


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.committed])
def test_only_committed_tokens_enter_history_based_caches(name: str) -> None:
    for seed in range(8):
        check_committed_only(SUBJECTS[name], seed)


def test_a_cache_that_takes_in_rejected_tokens_is_caught() -> None:
    class Gullible(Wrapped):
        def __init__(self) -> None:
            super().__init__(SUBJECTS["lookup"]())
            self.heard: list[int] = []

        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            return self.inner.propose([*self.heard, *tokens], limit)

        def observe(self, outcome: Outcome) -> None:
            self.heard += outcome.tree.tokens.tolist()

    with pytest.raises(AssertionError):
        check_committed_only(Gullible, 0)


# -- the output is the target's ------------------------------------------------------------------------------


def check_output(make: Callable[[], Drafter], seed: int, room: int, request: Request = GREEDY) -> None:
    assert text(make(), seed, room, request) == text(Plain(), seed, room, request)


@every_drafter
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), room=st.integers(1, 40))
def test_greedy_output_is_that_of_plain_decoding(name: str, seed: int, room: int) -> None:
    check_output(SUBJECTS[name], seed, room)


@every_drafter
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_coupled_output_is_that_of_plain_decoding_at_any_temperature(name: str, seed: int) -> None:
    sampling = Sampling(temperature=1.0, repetition_penalty=1.3, top_p=0.9)
    check_output(SUBJECTS[name], seed, 24, Request(sampling, "coupled", seed, 3, 9))


@every_drafter
def test_a_drafter_that_lives_through_many_requests_changes_no_output(name: str) -> None:
    drafter = SUBJECTS[name]()
    for seed in range(6):
        assert text(drafter, seed, 20) == greedy_text(seed, 20)
        if seed % 2:
            drafter.reset()


def test_a_tree_that_lies_about_its_tokens_is_caught() -> None:
    class Liar(Wrapped):
        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            return TokenTree.root((tokens[-1] + 1) % VOCAB)

    with pytest.raises(AssertionError):
        check_output(lambda: Liar(Plain()), 0, 20)


# -- an answer is its seed's ---------------------------------------------------------------------------------


def check_earlier_answers(make: Callable[[], Drafter], accept: str) -> None:
    """Where the answer depends on what is drafted, it is the same whatever was answered before."""
    asked = Request(Sampling(temperature=1.0), accept, 5, 2, 9)
    lived = make()
    for number, before in enumerate((GREEDY, asked, replace(asked, accept="coupled"), asked)):
        list(rounds(lived, 20 + number, 24, replace(before, number=number)))
    for seed in range(3):
        assert text(lived, seed, 20, asked) == text(make(), seed, 20, asked)


every_rule = pytest.mark.parametrize("accept", ["rejection", "block", "typical"])


@every_rule
@every_drafter
def test_an_answer_does_not_depend_on_the_answers_before_it(name: str, accept: str) -> None:
    check_earlier_answers(SUBJECTS[name], accept)


class Learning(Wrapped):
    """Proposes what it saw follow the last token, in whatever answer."""

    def __init__(self) -> None:
        super().__init__(Plain())
        self.after: dict[int, int] = {}

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        chain = [tokens[-1]]
        while len(chain) <= min(limit.nodes, limit.depth) and chain[-1] in self.after:
            chain.append(self.after[chain[-1]])
        return TokenTree.chain(chain, self.name)

    def observe(self, outcome: Outcome) -> None:
        said = [int(outcome.tree.tokens[0]), *outcome.tokens]
        self.after.update(pairwise(said))


def test_picks_that_were_learnt_from_earlier_answers_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_earlier_answers(Learning, "typical")


@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_draws_that_go_on_from_answer_to_answer_are_caught(accept: str) -> None:
    class Lasting(Wrapped):
        begun = False

        def begin(self, request: Request) -> None:
            if not self.begun or not request.draft_dependent:
                super().begin(request)
            self.begun = request.draft_dependent

    with pytest.raises(AssertionError):
        check_earlier_answers(lambda: Lasting(SUBJECTS["table"]()), accept)


@every_rule
def test_a_drafter_that_forgets_where_the_answer_depends_on_it_may_learn(accept: str) -> None:
    class Forgetting(Learning):
        def begin(self, request: Request) -> None:
            if request.draft_dependent:
                self.after.clear()

    check_earlier_answers(Forgetting, accept)

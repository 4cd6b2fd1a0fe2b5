"""Law 9 on the embedded bundle: whatever drafts, and however wide, the tokens are those of plain decoding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from storybook import DRAFTERS, answer, requests, session

from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

SAMPLED = Sampling(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.1)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    session().reset()
    yield
    session().set_drafter("none")


@cache
def plain(prompt: str, tokens: int, sampled: bool) -> list[int]:
    session().set_drafter("none")
    return answer(prompt, max_tokens=tokens, sampling=SAMPLED if sampled else Sampling(), seed=7)


def differing(prompts: list[str], drafter: str, tokens: int, sampled: bool = False) -> int:
    """Prompts whose tokens differ from plain decoding's."""
    wrong = 0
    sampling = SAMPLED if sampled else Sampling()
    for prompt in prompts:
        expected = plain(prompt, tokens, sampled)
        session().set_drafter(drafter)
        wrong += answer(prompt, max_tokens=tokens, sampling=sampling, seed=7) != expected
    return wrong


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_output_is_plain_decoding_s_token_for_token(drafter: str) -> None:
    assert differing(requests(40), drafter, 48) == 0


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_coupled_sampling_is_a_function_of_the_seed_whatever_drafts(drafter: str) -> None:
    assert differing(requests(12), drafter, 40, sampled=True) == 0


@pytest.mark.parametrize(
    ("drafter", "nodes"), list(itertools.product(("chain", "tree", "recycle"), (1, 2, 5, 15)))
)
def test_the_width_of_the_tree_changes_nothing(
    drafter: str, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = session()
    tested.set_drafter(drafter)
    monkeypatch.setitem(tested._draftings, drafter, replace(tested._drafting, control=FixedLimit(nodes, 8)))
    assert differing(requests(10), drafter, 40) == 0


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_the_form_of_the_cache_changes_nothing_about_that(form: str, sampling: Sampling) -> None:
    other = session(form)
    for prompt in requests(8):
        answers = []
        for drafter in ("none", "chain", "tree", "lookup,recycle"):
            other.set_drafter(drafter)
            answers.append(answer(prompt, other, max_tokens=40, sampling=sampling, seed=7))
        assert answers == answers[:1] * 4, prompt


def test_half_precision_tells_another_story_only_where_single_precision_all_but_tied() -> None:
    single, others = session("fp32"), 0
    for prompt in requests(20):
        exact, half = answer(prompt, single, max_tokens=60), answer(prompt, max_tokens=60)
        if exact == half:
            continue
        others += 1
        at = next(i for i, (a, b) in enumerate(zip(exact, half, strict=False)) if a != b)
        asked = single.encode(prompt)
        if not prompt.startswith("Once"):
            asked = single.chat_tokens([{"role": "user", "content": prompt}])
        pushed = Sampling(logit_bias={half[at]: 0.02})  # what fp16 may change of a logit
        events = list(single.generate([*asked, *exact[:at]], max_tokens=1, sampling=pushed))
        assert events[0].token == half[at], prompt
    assert others <= 2


@pytest.mark.slow
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_output_is_plain_decoding_s_on_two_hundred_prompts(drafter: str) -> None:
    assert differing(requests(200), drafter, 64) == 0


def test_control_a_node_that_sees_its_cousins_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything_before(tree: TokenTree) -> np.ndarray:
        return np.tri(len(tree), dtype=np.bool_)

    expected = [plain(prompt, 48, False) for prompt in requests(12)]  # kept from before the fault
    monkeypatch.setattr(TokenTree, "mask", everything_before)
    assert [plain.__wrapped__(prompt, 48, False) for prompt in requests(12)] == expected
    assert sum(differing(requests(12), drafter, 48) for drafter in ("tree", "recycle")) > 0


def test_control_a_cache_that_keeps_the_wrong_rows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [plain(prompt, 48, False) for prompt in requests(12)]  # kept from before the fault
    target = session()._target
    right = target.cache.write

    def first_rows(at: int, new: np.ndarray, rows: slice | tuple[int, ...]) -> None:
        right(at, new, rows if isinstance(rows, slice) else tuple(range(len(rows))))

    monkeypatch.setattr(target.cache, "write", first_rows)
    assert [plain.__wrapped__(prompt, 48, False) for prompt in requests(12)] == expected
    assert sum(differing(requests(12), drafter, 48) for drafter in ("tree", "recycle")) > 0

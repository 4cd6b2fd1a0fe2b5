"""Predicted acceptance: learnt as torch says, given by every graph, and no answer and no law changes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adaptable import adaptable_bundle, checkpoints, plain_bundle, predicting_bundle
from branches import Branches
from exact_rounds import HISTORY, World, error
from test_adaptation_export import opened, part_of, some_sample
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paceline.embedded import embedded_bundle
from paceline.export.adaptation.adding import adapt_bundle
from paceline.runtime.adaptation.contract import PREDICTOR
from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Children, agreement, corrected
from paceline.runtime.law import Law
from paceline.runtime.loading import load
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.unrolled import Unrolled
from paceline.runtime.ops.packed_matmul import unpack_columns
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

RATE = 1e-2
GREEDY, SAMPLED = Sampling(0.0), Sampling(1.0)
Odds = Callable[[Sequence[int]], float]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


# What a step makes of it


def expected_loss(
    weights: torch.Tensor, states: torch.Tensor, logits: torch.Tensor, sample: dict
) -> torch.Tensor:  # type: ignore[type-arg]
    """Row by row, as the paper has it, with the draft model's own score of its likeliest token beside it."""
    total, counted = torch.zeros(()), 0
    for row in range(len(logits)):
        labelled = sample["label_weight"][row] > 0
        if not (sample["weight"][row] or labelled):
            continue
        token = int(logits[row].argmax())
        q = float(torch.softmax(logits[row], -1)[token])
        p = float(sample["probs"][row][sample["ids"][row] == token].sum())
        wanted = 1.0 if labelled and sample["label"][row] == token else min(1.0, p / q)
        own = torch.softmax(logits[row] / 0.7, -1)[token].clamp(1e-6, 1 - 1e-6)
        said = torch.sigmoid(torch.logit(own) + states[row] @ weights)
        total = total + functional.binary_cross_entropy(said, torch.tensor(wanted))
        counted += 1
    return total / counted


@pytest.mark.parametrize("kernels", [True, False])
def test_five_steps_of_it_alone_are_those_of_torch(kernels: bool) -> None:
    step = opened(predicting_bundle("interleaved"), kernels)
    before = {name: array.copy() for name, array in step.adapters.items()}
    model = AutoModelForCausalLM.from_pretrained(checkpoints()[1]).eval()
    weights = torch.zeros(32, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=RATE, eps=1e-6)
    for number in range(5):
        sample = some_sample(number)
        step.run(sample, 0.0, RATE)
        with torch.no_grad():
            said = model(input_ids=torch.tensor(sample["token_ids"])[None], output_hidden_states=True)
        optimiser.zero_grad()
        expected_loss(weights, said.hidden_states[-1][0], said.logits[0], sample).backward()
        optimiser.step()
    learnt = unpack_columns(step.adapters[PREDICTOR], 1)[:, 0]
    assert np.abs(learnt - weights.detach().numpy()).max() < 2e-5
    assert np.abs(learnt).max() > 1e-2
    assert all(
        np.array_equal(before[name], array) for name, array in step.adapters.items() if name != PREDICTOR
    )


def test_drafts_learn_as_they_do_without_it() -> None:
    """Neither its loss nor its turns move anything else, the optimiser's moments included."""
    alone, joint, turns = (
        opened(adaptable_bundle()),
        opened(predicting_bundle("joint")),
        opened(predicting_bundle("joint")),
    )
    for number in range(4):
        loss = alone.run(some_sample(number), RATE)
        assert joint.run(some_sample(number), RATE, RATE) == pytest.approx(loss, abs=1e-6)
        turns.run(some_sample(number + 50), 0.0, RATE)
        assert turns.run(some_sample(number), RATE, 0.0) == pytest.approx(loss, abs=1e-6)
    for name, array in alone.adapters.items():
        assert joint.adapters[name] == pytest.approx(array, abs=1e-6)
        assert turns.adapters[name] == pytest.approx(array, abs=1e-6)
    assert not np.allclose(joint.adapters[PREDICTOR], turns.adapters[PREDICTOR])


# Graphs


def test_levels_of_one_call_predict_what_single_passes_do() -> None:
    folder = predicting_bundle("joint")
    part = part_of(folder)
    model = Model(Graph(folder / part.graph, find_device("cpu"), 1, part), part, 64, widest=4)
    call = Unrolled(model, lambda n: Graph(folder / part.draft_for(n, "fp32"), find_device("cpu"), 1, part))
    text = [7, 30, 41, 5, 99]
    model.read(text)
    assert model.odds == 0, "weights of zero predict nothing"
    model.adapters[PREDICTOR][:] = np.random.default_rng(0).normal(size=model.adapters[PREDICTOR].shape)
    model.rewind(3)
    tokens, _ = call.draft(text[3:], 4)
    together = call.odds[:4]
    model.rewind(0)
    alone = []
    for number in range(4):
        model.read([*text, *tokens[:number].tolist()])
        alone.append(model.odds)
    assert together == alone
    assert len(set(alone)) == 4


# Answers


@pytest.fixture(params=["joint", "interleaved"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with load(predicting_bundle(request.param), drafter="chain", adapt="on") as made:
        yield made


def ask(session: Session, number: int, sampling: Sampling = GREEDY, accept: str = "coupled") -> list[int]:
    prompt = [7 + number, 30, 41, 5, 99]
    return session.generate(prompt, max_tokens=40, sampling=sampling, seed=3, accept=accept).read().tokens  # type: ignore[arg-type]


def test_no_answer_changes_and_drafts_do(session: Session) -> None:
    with load(plain_bundle(), drafter="none") as plain:
        expected = [ask(plain, n, sampling) for n in range(5) for sampling in (GREEDY, SAMPLED)]
    with load(predicting_bundle("joint"), drafter="chain") as fresh:
        sampled = ask(fresh, 1, SAMPLED, "rejection")
    got = []
    for number in range(5):
        for sampling in (GREEDY, SAMPLED):
            got.append(ask(session, number, sampling))
            assert session.learner.wait(60)
    assert got == expected
    [model] = session._workshop._models.values()
    ask(session, 0)
    assert model.odds != 0, "the negative control: it predicts something"
    assert ask(session, 1, SAMPLED, "rejection") == sampled, "drafted as if nothing had been learnt"
    assert model.odds == 0


def surprise(chances: Sequence[float], accepted: Sequence[bool]) -> float:
    """Mean binary cross entropy."""
    p = np.clip(np.array(chances), 1e-3, 1 - 1e-3)
    return -float(np.where(accepted, np.log(p), np.log1p(-p)).mean())


@pytest.mark.slow
def test_on_real_texts_what_is_predicted_comes_true_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storyteller's draft model, on what no story is; a token a round, so that each prediction is judged."""
    adapt_bundle(embedded_bundle(), 4, tmp_path / "bundle", predictor="joint")
    seen: list[tuple[float, float]] = []

    def watched(score: float, odds: float) -> float:
        seen.append((score, corrected(score, odds)))
        return seen[-1][1]

    monkeypatch.setattr("paceline.runtime.drafters.chain.corrected", watched)
    accepted: list[bool] = []

    def judged(outcome: Outcome) -> None:
        if len(outcome.scored.logits) > 1:
            accepted.append(len(outcome.verdict.path) > 1)

    with load(tmp_path / "bundle", drafter="chain", adapt="on") as session:
        session._drafting = replace(session._drafting, control=FixedLimit(1, 1))
        [chain] = [session._drafting.drafter]
        monkeypatch.setattr(chain, "observe", judged)
        for number in range(24):
            if number == 16:
                seen.clear()
                accepted.clear()
            asked = [
                {
                    "role": "user",
                    "content": f"{7 * number} boxes hold {number} {THINGS[number % 6]} each. Why?",
                }
            ]
            session.chat(asked, max_tokens=80, sampling=GREEDY).read()
            assert session.learner.wait(300)
    assert len(seen) == len(accepted) > 200
    own, learnt = ([told[at] for told in seen] for at in range(2))
    assert surprise(learnt, accepted) < surprise(own, accepted)


THINGS = ("apples", "planets", "equations", "engines", "laws", "songs")


# The law


class Told:
    """A draft model of a table, and what it predicts behind a text."""

    def __init__(self, world: World, odds: Odds) -> None:
        self.part, self.context, self.bytes = SimpleNamespace(vocab=world.vocab), 100, 0
        self._rows, self._odds, self._text = world.rows(1), odds, list[int]()

    @property
    def odds(self) -> float:
        return self._odds(self._text)

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        return tokens

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        self._text = list(tokens)
        return self._rows(self._text)

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        return self.read([*self._text, *tokens])


class Branching:
    """Draws one token, in every way."""

    sampled = True

    def __init__(self, world: World, branches: Branches) -> None:
        self._maker, self._branches = world.maker, branches

    def children(self, row: np.ndarray, history: Sequence[int], count: int) -> Children:
        law = self._maker.law(row, history)
        return Children((self._branches.sample(law),), (agreement(law, 1.0),), law)


def by_row(text: Sequence[int]) -> float:
    """Different behind every text, large enough to end some drafts and not others."""
    return 6.0 * ((sum(text) + 2) % 3 - 1)


def chain_of(world: World, branches: Branches) -> TokenTree:
    drafter = ChainModel(Told(world, by_row), world.vocab)  # type: ignore[arg-type]
    drafter._draw = Branching(world, branches)
    tree = drafter.propose(HISTORY, DraftLimit(3, 3, 0.1, 0.3))
    lengths.add(len(tree))
    return tree


lengths: set[int] = set()


def stopped(world: World, branches: Branches, odds: Odds, ahead: bool) -> TokenTree:
    """A chain that ends before a token that is not worth it, drawn or not. ahead: the odds may see the draw."""
    text, dists, chance, draw = list(HISTORY), dict[int, Law](), 1.0, Branching(world, branches)
    for node in range(3):
        drawn = draw.children(world.rows(1)(text), text, 1)
        chance *= corrected(drawn.scores[0], odds([*text, *drawn.tokens] if ahead else text))
        if chance < 0.3:
            break
        assert drawn.law is not None
        dists[node] = drawn.law
        text += drawn.tokens
    return TokenTree.chain(text[len(HISTORY) - 1 :], "chain", dists)


@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_a_draft_that_ends_by_its_rows_keeps_the_law_and_one_that_looks_ahead_does_not(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Law, "sample", lambda law, branches: branches.sample(law))
    lengths.clear()
    for seed in range(3):
        assert error(World(3, accept, seed), chain_of) < 1e-12
    assert len(lengths) > 1, "some drafts ended early"
    assert error(World(3, accept, 0), lambda w, b: stopped(w, b, by_row, ahead=False)) < 1e-12
    assert error(World(3, accept, 0), lambda w, b: stopped(w, b, by_row, ahead=True)) > 1e-3


def test_odds_multiply_the_odds_of_a_score() -> None:
    assert corrected(0.37, 0.0) == pytest.approx(0.37)
    assert corrected(0.5, np.log(3)) == pytest.approx(0.75)
    assert corrected(0.2, -np.log(4)) == pytest.approx(1 / 17)
    assert corrected(1.0, -3.0) == 1.0
    for odds in (-1e9, 1e9):
        assert 0 < corrected(0.5, odds) <= 1

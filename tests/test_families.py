"""Every family of decoders, as a small random instance: the captured graph gives torch's logits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from family_models import FAMILIES, VOCAB, write_family
from graph_runner import Runner, make_runner, path, random_tree, tree_mask

pytestmark = pytest.mark.export
TOLERANCE = 1e-4
FAST = ("llama", "mistral")
PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 24)]
KEPT = 15
"""Prompt rows that are committed before a tree; more than the windows, which are 8."""


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in FAMILIES]
)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = write_family(request.param, tmp_path_factory.mktemp("family"))
    return make_runner(folder, taps=["hidden", "hidden.0"])


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - wanted).max())


def test_a_prompt_in_one_pass_has_the_logits_of_torch(runner: Runner) -> None:
    runner.reset()
    assert error(runner.prefill(PROMPT), runner.torch_logits(PROMPT)) <= TOLERANCE


def test_a_prompt_in_chunks_and_then_token_by_token_has_the_logits_of_torch(runner: Runner) -> None:
    runner.reset()
    cuts = [0, 11, 13, KEPT, *range(KEPT + 1, len(PROMPT) + 1)]
    got = [runner.prefill(PROMPT[a:b], a) for a, b in pairwise(cuts)]
    assert error(np.concatenate(got), runner.torch_logits(PROMPT)) <= TOLERANCE


def test_taps_carry_the_hidden_states_of_torch(runner: Runner) -> None:
    runner.reset()
    out = runner.run(PROMPT, range(len(PROMPT)), np.tril(np.ones((len(PROMPT),) * 2, bool)), 0, rows=[])
    assert out["logits"].shape == (0, VOCAB)
    assert error(out["hidden"], runner.torch_hidden(PROMPT)) <= TOLERANCE
    assert out["hidden.0"].shape == out["hidden"].shape


@pytest.mark.parametrize("seed", range(3))
def test_every_node_of_a_random_tree_has_the_logits_of_its_path(runner: Runner, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = random_tree(rng, 9, 6)
    tokens = [int(token) for token in rng.integers(3, VOCAB, len(parents))]
    runner.reset()
    runner.prefill(PROMPT[:KEPT])
    positions = [KEPT + len(path(parents, node)) - 1 for node in range(len(parents))]
    got = runner.run(tokens, positions, tree_mask(parents), KEPT)["logits"]
    for node in range(len(parents)):
        wanted = runner.torch_logits([*PROMPT[:KEPT], *(tokens[n] for n in path(parents, node))])[-1]
        assert error(got[node], wanted) <= TOLERANCE


@pytest.mark.parametrize("seed", range(2))
def test_a_tree_grown_level_by_level_over_uncommitted_rows_has_the_logits_of_its_paths(
    runner: Runner, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parents = random_tree(rng, 9, 5)
    tokens = [int(token) for token in rng.integers(3, VOCAB, len(parents))]
    depths = [len(path(parents, node)) - 1 for node in range(len(parents))]
    mask = tree_mask(parents)
    runner.reset()
    runner.prefill(PROMPT[:KEPT])
    for level in range(max(depths) + 1):
        nodes = [n for n, depth in enumerate(depths) if depth == level]
        first, end = nodes[0], nodes[-1] + 1
        out = runner.run(tokens[first:end], [KEPT + level] * len(nodes), mask[first:end, :end], KEPT + first)
        runner.store(out, KEPT + first)
        for row, node in enumerate(nodes):
            wanted = runner.torch_logits([*PROMPT[:KEPT], *(tokens[n] for n in path(parents, node))])[-1]
            assert error(out["logits"][row], wanted) <= TOLERANCE


def test_a_wrong_mask_gives_other_logits(runner: Runner) -> None:
    """Negative control: the comparison above can fail."""
    runner.reset()
    everything = np.ones((len(PROMPT),) * 2, bool)
    got = runner.run(PROMPT, range(len(PROMPT)), everything, 0)["logits"]
    assert error(got[:4], runner.torch_logits(PROMPT)[:4]) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rope dynamic", "rope longrope"])
@pytest.mark.parametrize("context", [12, 60])
def test_length_dependent_frequencies_are_those_of_the_session_whatever_a_pass_holds(
    name: str, context: int, tmp_path: Path
) -> None:
    runner = make_runner(write_family(name, tmp_path), context=context)
    assert error(runner.prefill(PROMPT[:10]), runner.torch_logits(PROMPT[:10])) <= TOLERANCE
    runner.context = 76 - context - 1 if name == "rope longrope" else 128
    assert error(runner.prefill(PROMPT[:10]), runner.torch_logits(PROMPT[:10])) <= TOLERANCE

"""Bits by sensitivity: the allocation, rounding by error feedback, and what a pass over a text measures."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("transformers")

from small_checkpoints import write_checkpoint

from paceline.export.feedback import Format, round_matrix
from paceline.export.quantize import Quantised
from paceline.export.recipe import FORMATS, allocate, follow, make_recipe
from paceline.export.sensitivity import Sensitivity, measure, projection_weights
from paceline.export.source import load_model
from paceline.export.torch_model import logits_of

pytestmark = pytest.mark.export


@st.composite
def choices(draw):
    """Losses and sizes of a few options for each of a few matrices."""
    matrices = draw(st.integers(1, 5))
    options = draw(st.integers(1, 4))
    losses = st.lists(st.floats(0, 100), min_size=options, max_size=options)
    taken = st.lists(st.integers(1, 5000), min_size=options, max_size=options)
    return [draw(losses) for _ in range(matrices)], [draw(taken) for _ in range(matrices)]


def total(options, picked):
    return sum(values[at] for values, at in zip(options, picked, strict=True))


@given(choices(), st.floats(0, 1.2))
def test_an_allocation_is_the_best_of_all_that_fit_and_keeps_the_budget(given_choices, share):
    losses, taken = given_choices
    budget = int(share * sum(map(max, taken)))
    fitting = [p for p in product(range(len(taken[0])), repeat=len(taken)) if total(taken, p) <= budget]
    if not fitting:
        with pytest.raises(ValueError, match="narrowest formats"):
            allocate(losses, taken, budget)
        return
    picked = allocate(losses, taken, budget)
    assert total(taken, picked) <= budget
    assert total(losses, picked) <= min(total(losses, p) for p in fitting) + 1e-9


@given(choices(), st.floats(0.5, 1), st.floats(0, 0.3))
def test_more_bits_never_give_more_estimated_loss(given_choices, share, more):
    losses, taken = given_choices
    budget = max(int(share * sum(map(max, taken))), sum(map(min, taken)))
    larger = budget + int(more * budget)
    assert total(losses, allocate(losses, taken, larger)) <= total(losses, allocate(losses, taken, budget))


def test_large_matrices_keep_the_budget_too():
    random = np.random.default_rng(0)
    shapes = [(int(k), int(n)) for k, n in random.integers(1, 400, (300, 2)) * 64]
    taken = [[form.size(k, n) for form in FORMATS] for k, n in shapes]
    losses = [[float(random.uniform(0.5, 2)) * 4.0**-form.bits for form in FORMATS] for _ in shapes]
    weights = sum(k * n for k, n in shapes)
    for bits in (4.5, 4.85, 5.0, 6.3):
        used = total(taken, allocate(losses, taken, int(bits * weights)))
        assert bits - 0.03 < used / weights <= bits


def inputs(k: int, rows: int, seed: int) -> torch.Tensor:
    """Inputs that share a few directions, of unlike sizes, as a model's do."""
    random, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
    mixing = torch.randn(k // 8, k, generator=shared)
    sizes = torch.randn(k, generator=shared).exp()
    few = torch.randn(rows, k // 8, generator=random) @ mixing / mixing.norm(dim=0)
    return (few + 0.2 * torch.randn(rows, k, generator=random)) * sizes


def gaussian(k: int, n: int) -> torch.Tensor:
    return 0.02 * torch.randn(k, n, generator=torch.Generator().manual_seed(1))


def lost(x: torch.Tensor, weight: torch.Tensor, rounded: Quantised) -> float:
    meant = torch.from_numpy(rounded.dense(0, rounded.n)).T
    return float((x @ (meant - weight)).norm() / (x @ weight).norm())


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("k", [256, 172])
def test_error_feedback_beats_rounding_by_importance_and_that_beats_plain_rounding_on_new_inputs(form, k):
    weight, seen, unseen = gaussian(k, 96), inputs(k, 2048, 0), inputs(k, 512, 1)
    moments = Sensitivity(seen.T @ seen / len(seen), torch.ones(96), len(seen))
    plain, weighted, fed_back = (
        lost(unseen, weight, round_matrix(weight.numpy(), form, known))
        for known in (None, moments.importance(), moments.inputs())
    )
    assert fed_back < 0.8 * weighted
    assert weighted < 1.001 * plain


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_codes_are_on_the_grid_and_the_padding_stands_for_zero(form):
    weight, seen = gaussian(80, 40), inputs(80, 512, 0)
    rounded = round_matrix(weight.numpy(), form, seen.T @ seen)
    assert rounded.codes.max() < 2**form.bits
    assert (rounded.minima is not None) == form.minimum
    assert rounded.scales.dtype == np.float16
    padding = rounded.codes[:, 80:]
    assert (padding == (0 if form.minimum else 2 ** (form.bits - 1))).all()
    meant = rounded.dense(0, rounded.n).T
    assert rounded.error == pytest.approx(
        float(np.linalg.norm(meant - weight.numpy()) / weight.norm()), rel=1e-3
    )
    bits = rounded.n * rounded.codes.shape[1] * form.bits + 16 * rounded.scales.size * (1 + form.minimum)
    assert form.size(80, 40) == bits


@pytest.mark.parametrize("factor", [1e9, 1e-9])
def test_weights_beyond_half_precision_are_rounded_with_wider_scales(factor):
    weight = np.float32(factor) * gaussian(64, 8).numpy()
    rounded = round_matrix(weight, Format(4, 32, True), torch.eye(64))
    assert rounded.scales.dtype == np.float32
    assert rounded.error < 0.15


@pytest.mark.parametrize("fill", [0.0, 0.25])
def test_constant_columns_are_kept(fill):
    weight = np.full((64, 8), fill, np.float32)
    for form in FORMATS:
        assert np.allclose(round_matrix(weight, form, torch.eye(64)).dense(0, 8), fill, rtol=1e-3)


def test_an_input_of_thousands_does_not_spoil_the_others():
    weight, seen = gaussian(128, 32), inputs(128, 1024, 0)
    seen[:, 5] *= 3000
    rounded = round_matrix(weight.numpy(), FORMATS[2], seen.T @ seen)
    others = seen.clone()
    others[:, 5] = 0
    assert lost(others, weight, rounded) < 0.12


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return load_model(str(write_checkpoint(folder, kind=request.param, hidden_size=64)))


@pytest.fixture(scope="module")
def text():
    return torch.randint(2, 320, (12, 64), generator=torch.Generator().manual_seed(3))


def test_every_projection_is_measured_and_no_gradient_or_hook_is_left(loaded, text):
    before = logits_of(loaded, [5, 6, 7], 3)
    measured = measure(loaded, text)
    weights = projection_weights(loaded.model)
    assert set(weights) <= set(measured)
    assert all(len(measured[name].importance()) == len(weight) for name, weight in weights.items())
    assert all((known.importance() >= 0).all() and known.outputs.sum() > 0 for known in measured.values())
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())
    assert np.array_equal(before, logits_of(loaded, [5, 6, 7], 3))


def test_the_estimated_loss_is_the_divergence_of_the_rounded_model(loaded, text):
    measured = measure(loaded, text)
    weights = projection_weights(loaded.model)
    name = next(name for name in weights if name.endswith(("down_proj.weight", "1.mlp.c_proj.weight")))
    kept, known = weights[name].clone(), measured[name]
    error = 0.02 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(4))
    estimated = 0.5 * float(known.importance() @ error.square() @ known.outputs[: error.shape[1]])
    before = torch.from_numpy(
        np.concatenate([logits_of(loaded, row.tolist(), 64) for row in text])
    ).log_softmax(-1)
    weights[name].add_(error)
    after = torch.from_numpy(
        np.concatenate([logits_of(loaded, row.tolist(), 64) for row in text])
    ).log_softmax(-1)
    weights[name].copy_(kept)
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    assert estimated == pytest.approx(divergence, rel=0.4)


def test_a_recipe_keeps_its_bits_gives_one_input_one_format_and_rounds_better_than_one_format(loaded, text):
    measured = measure(loaded, text)
    weights = projection_weights(loaded.model)
    recipe = make_recipe(loaded, measured, 5.5)
    number = sum(weight.numel() for weight in weights.values())
    used = sum(recipe.formats[name].size(*weight.shape) for name, weight in weights.items())
    assert used / number == pytest.approx(recipe.bits)
    assert recipe.bits <= 5.5
    for name, known in measured.items():
        same = {recipe.formats[other] for other in weights if measured[other] is known}
        assert len(same) <= 1, name
    choose = follow(recipe, measured)
    for name, weight in weights.items():
        form = recipe.formats[name]
        rounded = choose(name, weight.numpy())
        assert (rounded.bits, rounded.block) == (form.bits, form.block)


def test_too_few_bits_are_refused_and_the_default_takes_what_padding_needs(tmp_path, text):
    padded = load_model(str(write_checkpoint(tmp_path)))
    measured = measure(padded, text)
    with pytest.raises(ValueError, match=r"--bits 4.6 is too few: .* takes at least 5\.\d+ bits"):
        make_recipe(padded, measured, 4.6)
    assert 5 < make_recipe(padded, measured, None).bits < 8

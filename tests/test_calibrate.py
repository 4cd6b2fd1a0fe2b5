"""Calibrated 4-bit rounding: smaller errors of what a matrix computes, on a grid that is stored exactly."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("transformers")

from small_checkpoints import write_checkpoint

from paceline.export.calibrate import calibrate, calibration_text, text_rows
from paceline.export.quantize import quantise
from paceline.export.rounding import block_for, calibrated
from paceline.export.source import load_model
from paceline.export.torch_model import logits_of

pytestmark = pytest.mark.export


def correlated(k: int, rows: int = 1024, seed: int = 0) -> torch.Tensor:
    """Inputs [rows, k] that vary mostly along an eighth of their directions, as a model's do."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(1, k // 8), generator=random) @ torch.randn(
        max(1, k // 8), k, generator=random
    )
    return few / few.std() + 0.2 * torch.randn(rows, k, generator=random)


def gaussian(k: int, n: int) -> torch.Tensor:
    return 0.02 * torch.randn(k, n, generator=torch.Generator().manual_seed(1))


def plain(weight: torch.Tensor, block: int) -> torch.Tensor:
    return torch.from_numpy(quantise(weight.numpy(), 4, block).dense(0, weight.shape[1])).T


def lost(x: torch.Tensor, weight: torch.Tensor, rounded: torch.Tensor) -> float:
    return float((x @ (weight - rounded)).norm() / (x @ weight).norm())


@pytest.mark.parametrize(
    ("k", "n", "block"), [(256, 96, 32), (256, 96, 128), (172, 40, 32), (200, 5000, 128)]
)
def test_calibrated_rounding_loses_less_than_half_of_what_plain_rounding_loses_on_new_inputs(k, n, block):
    weight, x, unseen = gaussian(k, n), correlated(k)[:800], correlated(k)[800:]
    rounded = calibrated(weight, x.T @ x, block_for(k, block)).values()
    assert rounded.shape == weight.shape
    assert lost(unseen, weight, rounded) < 0.5 * lost(unseen, weight, plain(weight, block))


def test_without_any_input_it_is_about_as_good_as_plain_rounding():
    weight = gaussian(128, 64)
    rounded = calibrated(weight, torch.zeros(128, 128), 32).values()
    assert (rounded - weight).norm() < 1.02 * (plain(weight, 32) - weight).norm()


def test_rows_that_no_input_reaches_stay_near_the_weight():
    weight, x = gaussian(128, 64), correlated(128)
    x[:, 40:60] = 0
    rounded = calibrated(weight, x.T @ x, 32).values()
    assert (rounded - weight)[40:60].norm() < 0.2 * weight[40:60].norm()
    assert lost(x, weight, rounded) < 0.7 * lost(x, weight, plain(weight, 32))


def test_a_column_of_zeros_stays_zero_and_the_scale_of_the_inputs_does_not_matter():
    weight, x = gaussian(64, 20), correlated(64)
    weight[:, 3] = 0
    rounded = calibrated(weight, x.T @ x, 32)
    assert (rounded.values()[:, 3] == 0).all()
    again = calibrated(weight, 2.0**20 * (x.T @ x), 32)
    assert torch.equal(rounded.codes, again.codes)


def test_scales_beyond_half_precision_and_infinite_inputs_are_refused():
    weight, x = gaussian(64, 20), correlated(64)
    with pytest.raises(ValueError, match="half precision"):
        calibrated(weight * 1e9, x.T @ x, 32)
    with pytest.raises(ValueError, match="not finite"):
        calibrated(weight, torch.full((64, 64), torch.inf), 32)


@pytest.mark.parametrize(("k", "block"), [(256, 32), (256, 128), (172, 128), (20, 32)])
def test_what_calibration_leaves_is_stored_exactly(k, block):
    weight, x = gaussian(k, 300), correlated(k)
    weight[:, ::7] *= 0.1
    rounded = calibrated(weight, x.T @ x, block_for(k, block))
    meant = rounded.values().numpy()
    stored = quantise(meant, 4, block, gridded=True)
    assert stored.scales.dtype == np.float16
    assert stored.error == 0
    assert np.array_equal(stored.dense(0, 300).T, meant)


@pytest.fixture
def loaded(tmp_path):
    """A random model whose embeddings lie mostly along a few directions, as trained ones do."""
    loaded = load_model(str(write_checkpoint(tmp_path, hidden_size=64, intermediate_size=96)))
    table = loaded.model.get_input_embeddings().weight
    table.data.copy_(0.2 * correlated(64, rows=len(table)))
    return loaded


def test_a_calibrated_model_is_nearer_to_itself_than_a_plainly_rounded_one(loaded):
    text = calibration_text(loaded, [5, 6, 7], rows=12)
    assert text.shape == (13, 128)
    shares: list[float] = []
    assert torch.equal(text, calibration_text(loaded, [5, 6, 7], rows=12, done=shares.append))
    assert shares == sorted(shares)
    assert len(set(shares)) == text.shape[1] - 1
    assert shares[-1] == 1.0
    text, tokens = text[1:], text[0].tolist()
    before = logits_of(loaded, tokens, 128)
    kept = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for parameter in loaded.model.parameters():
        if parameter.dim() == 2:
            parameter.data.copy_(plain(parameter.data.T.contiguous(), 32).T)
    crude = np.linalg.norm(logits_of(loaded, tokens, 128) - before)
    loaded.model.load_state_dict(kept)
    calibrate(loaded, text, 32)
    assert np.linalg.norm(logits_of(loaded, tokens, 128) - before) < 0.8 * crude


def test_every_matrix_of_a_calibrated_model_lies_on_the_grid(loaded):
    seen: list[int] = []
    errors = calibrate(loaded, calibration_text(loaded, rows=4), 32, seen.append)
    matrices = {name: p for name, p in loaded.model.named_parameters() if p.dim() == 2}
    assert set(errors) == set(matrices)
    assert all(0 < error < 0.3 for error in errors.values())
    assert seen[-1] == sum(p.numel() for p in matrices.values())
    for parameter in matrices.values():
        assert quantise(parameter.detach().numpy().T, 4, 32, gridded=True).error == 0
    assert not any("forward" in vars(module) for module in loaded.model.modules())


def test_the_head_can_be_left_alone(tmp_path):
    loaded = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=False)))
    head = loaded.model.lm_head.weight.detach().clone()
    table = loaded.model.get_input_embeddings().weight.detach().clone()
    errors = calibrate(loaded, calibration_text(loaded, rows=4), 32, head=False)
    assert torch.equal(loaded.model.lm_head.weight, head)
    assert torch.equal(loaded.model.get_input_embeddings().weight, table)
    assert "lm_head.weight" not in errors
    errors = calibrate(loaded, calibration_text(loaded, rows=4), 32)
    assert "lm_head.weight" in errors
    assert torch.equal(loaded.model.get_input_embeddings().weight, table)


def test_a_short_text_is_repeated_and_an_empty_one_refused():
    assert text_rows([1, 2, 3], 5).tolist() == [[1, 2, 3, 1, 2]]
    assert text_rows(list(range(10)), 3, rows=8).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="no tokens"):
        text_rows([], 4)

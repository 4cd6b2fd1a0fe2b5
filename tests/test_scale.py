"""The scale model computes what the small model computes, whatever its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from paceline.export.scale import Sizes, widen  # noqa: E402

pytestmark = pytest.mark.export

SMALL = Sizes(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=40, vocab=96, tied=True)
TOKENS = [3, 17, 95, 0, 41, 41, 8]


def config(sizes: Sizes) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=sizes.hidden, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_dim, intermediate_size=sizes.ffn,
        vocab_size=sizes.vocab, tie_word_embeddings=sizes.tied,
    )  # fmt: skip


def logits(model: LlamaForCausalLM) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(torch.tensor([TOKENS])).logits[0].double().numpy()


@pytest.fixture(scope="module")
def small() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(SMALL))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(
                1 + 0.2 * torch.randn_like(weight) if "norm" in name else 0.4 * torch.randn_like(weight)
            )
            weight.copy_(weight.half().float())
    return model


def wide_tensors(small: LlamaForCausalLM, big: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    weights = {name: weight.numpy() for name, weight in small.state_dict().items()}
    unlikely = logits(small).mean(axis=0).argsort()[:6]
    return dict(widen(SMALL, weights, big, unlikely, seed))


BIG = [
    Sizes(hidden=128, layers=5, heads=8, kv_heads=4, head_dim=8, ffn=100, vocab=300, tied=False),
    Sizes(hidden=64, layers=2, heads=16, kv_heads=2, head_dim=8, ffn=80, vocab=96, tied=True),
    Sizes(hidden=96, layers=3, heads=32, kv_heads=8, head_dim=8, ffn=81, vocab=1000, tied=True),
]


@pytest.mark.parametrize("big", BIG)
def test_the_logits_of_real_tokens_are_those_of_the_small_model(small: LlamaForCausalLM, big: Sizes) -> None:
    tensors = wide_tensors(small, big)
    model = LlamaForCausalLM(config(big))
    state = {name: torch.from_numpy(tensor).float() for name, tensor in tensors.items()}
    if big.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    ours, theirs = logits(model), logits(small)
    assert np.abs(ours[:, : SMALL.vocab] - theirs).max() < 3e-4 * np.abs(theirs).max()
    assert (ours.argmax(1) == theirs.argmax(1)).all(), "an added token is the best"


@pytest.mark.parametrize("big", BIG)
def test_no_two_copies_of_a_weight_are_alike_and_only_added_blocks_write_zeros(
    small: LlamaForCausalLM, big: Sizes
) -> None:
    tensors = wide_tensors(small, big)
    silent = 0
    for name, tensor in tensors.items():
        if "proj" not in name:
            continue
        if not tensor.any():
            silent += 1
            assert "o_proj" in name or "down_proj" in name
            continue
        assert len(np.unique(tensor, axis=0)) == len(tensor), name
        assert (tensor == 0).mean() < 0.01, name
    assert silent == 2 * (big.layers - SMALL.layers)


def test_the_seed_decides_the_weights(small: LlamaForCausalLM) -> None:
    first, again, other = (wide_tensors(small, BIG[0], seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": 100}, "hidden 100 is not a multiple of 32"),
        ({"kv_heads": 3}, "kv_heads 3 is not a multiple of 2"),
        ({"heads": 12}, "do not fall into groups"),
        ({"head_dim": 16}, "as wide as before"),
        ({"ffn": 39}, "ffn 39 is below the 40"),
    ],
)
def test_sizes_that_cannot_hold_the_small_model_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        widen(SMALL, {}, replace(BIG[0], **change), np.arange(2))

"""The scale model computes what the small model computes, whatever its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from command_line import BUNDLE  # noqa: E402
from msgspec.structs import replace as replaced  # noqa: E402
from small_heads import small_config, small_tensors  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from paceline.export.heads.checkpoint import expected_shapes  # noqa: E402
from paceline.export.heads.head import Head  # noqa: E402
from paceline.export.heads.reference import Reference  # noqa: E402
from paceline.export.heads.scaling import widen_head  # noqa: E402
from paceline.export.scale import Sizes, widen  # noqa: E402
from paceline.runtime.manifest import read_manifest  # noqa: E402

pytestmark = pytest.mark.export

SMALL = Sizes(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=40, vocab=96, tied=True)
TOKENS = [3, 17, 95, 0, 41, 41, 8]


def config_of(sizes: Sizes) -> LlamaConfig:
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
    model = LlamaForCausalLM(config_of(SMALL))
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
    model = LlamaForCausalLM(config_of(big))
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


@pytest.mark.parametrize(("method", "big"), list(zip(["eagle3", "hydra", "medusa"], BIG, strict=True)))
def test_a_head_drafts_for_the_big_model_what_it_drafts_for_the_small_one(
    small: LlamaForCausalLM, big: Sizes, method: str
) -> None:
    """Each reads the hidden states of its own model."""
    config = replaced(small_config(read_manifest(BUNDLE).target, method), hidden=SMALL.hidden)
    config = replaced(
        config, target_vocab=SMALL.vocab, vocab=40, head_dim=8, tied=method != "medusa", depth=3
    )
    config = replaced(config, taps=["hidden.0", "hidden"])
    given = small_tensors(config)
    ids = given.pop("vocabulary").astype(np.int64)
    ours = Head(config, given, ids, "unknown")
    widened, tensors = widen_head(ours, SMALL, big)
    assert {name: values.shape for name, values in tensors.items()} == expected_shapes(widened)
    assert widened.taps == ["hidden.0", "hidden"]
    vocabulary = tensors.pop("vocabulary").astype(np.int64)
    theirs = Head(widened, {k: v.astype(np.float32) for k, v in tensors.items()}, vocabulary, "unknown")
    model = LlamaForCausalLM(config_of(big))
    state = {name: torch.from_numpy(tensor).float() for name, tensor in wide_tensors(small, big).items()}
    model.load_state_dict(state, strict=not big.tied)
    drafts = []
    for head, of in ((ours, small), (theirs, model)):
        with torch.inference_mode():
            states = of.eval()(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
        read = [int(head.config.taps[0].partition(".")[2]) + 1, -1]
        features = np.concatenate([states[at][0].numpy() for at in read], axis=1)[:-1]
        reference = Reference(head)
        seen, past = reference.read(TOKENS[1:], features)
        followed = np.array([ids[[1, 5, 9]], ids[[0, 3, 7]]])
        drafts.append(reference.draft(seen[[3, 5]], past, [4, 6], followed))
    assert np.abs(drafts[0] - drafts[1]).max() < 3e-3 * np.abs(drafts[0]).max()


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

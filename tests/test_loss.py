"""What an export says of a rounded model: a strict comparison of its graph, and what rounding costs in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir
import torch
from small_checkpoints import write_checkpoint
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from paceline.export import pipeline
from paceline.export.errors import ExportError
from paceline.export.loss import Loss, sample
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.quantize import Quantised, quantise
from paceline.export.stored import StoredWeights
from paceline.export.torch_model import put_back

pytestmark = pytest.mark.export


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def coded(weight: torch.Tensor) -> Quantised:
    """Of a parameter [out, in]."""
    return quantise(weight.detach().numpy().T.copy(), 4, 32)


def test_stored_weights_go_back_where_they_came_from() -> None:
    model, stored = llama(tied=False), StoredWeights()
    weight = model.model.layers[0].mlp.down_proj.weight
    before, codes = weight.detach().clone(), coded(weight)
    choose = stored.seen(lambda name, values: codes if "down" in name else None)
    assert choose("model.layers.0.mlp.down_proj.weight", before.numpy().T) is codes
    assert choose("model.layers.0.mlp.up_proj.weight", before.numpy().T) is None
    others = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    put_back(model, stored.take(), shared=True)
    assert np.array_equal(weight.detach().numpy(), codes.dense(0, 64))
    assert not torch.equal(weight, before)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, others)


@pytest.mark.parametrize("shared", [True, False])
def test_a_table_follows_its_head_only_where_it_reads_its_codes(shared: bool) -> None:
    model, stored = llama(tied=True), StoredWeights()
    before = model.model.embed_tokens.weight.detach().clone()
    codes = coded(before)
    stored.seen(lambda name, values: codes)("lm_head.weight", before.numpy().T)
    put_back(model, stored.take(), shared=shared)
    assert np.array_equal(model.lm_head.weight.detach().numpy(), codes.dense(0, 96))
    assert torch.equal(model.model.embed_tokens.weight, before) != shared


def test_a_conv1d_is_stored_the_other_way_round() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2, n_positions=32))
    weight = model.transformer.h[0].mlp.c_fc.weight
    codes, stored = quantise(weight.detach().numpy().copy(), 4, 32), StoredWeights()
    stored.seen(lambda name, values: codes)("transformer.h.0.mlp.c_fc.weight", weight.detach().numpy())
    put_back(model, stored.take(), shared=False)
    assert np.array_equal(weight.detach().numpy(), codes.dense(0, 256).T)


def test_the_sample_is_long_enough_and_plain() -> None:
    text = sample()
    assert len(text.split()) > 1500
    assert text.isascii()


def test_a_loss_is_told_in_words_with_a_remedy_where_it_is_high() -> None:
    small, large = Loss(2000, False, 20.0, 20.5), Loss(2000, True, 20.0, 25.0)
    assert small.told() == "on 2,000 tokens of plain English: perplexity 20 in torch, 20.5 as stored (+2.5%)"
    assert "of the text: " in large.told()
    assert small.advice("int4", 4.85) is None
    assert large.advice("int4", 4.85) == (
        "rounding costs 25% of perplexity: more bits (--bits 5.8) cost less, and --quant int8 next to nothing"
    )
    assert "--bits" not in (large.advice("int4", None) or "")
    assert "--quant none" in (large.advice("int8", None) or "")
    assert large.advice("keep", None) is None


def test_a_graph_that_is_slightly_wrong_is_found_however_coarse_the_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm off by 2 % is far below what four bits cost."""
    plain = pipeline.simplify

    def wrong(graph: ir.Model) -> None:
        plain(graph)
        norm = next(node for node in graph.graph if node.op_type == "RMSNormalization")
        scale = norm.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.02))

    checkpoint = str(write_checkpoint(tmp_path / "checkpoint"))
    order = Order(checkpoint, quant="int4", calibrate=False)
    made = export_bundle(order, tmp_path / "right").parts["target"]
    assert made.agreement.relative < 1e-4
    assert made.loss is not None
    monkeypatch.setattr(pipeline, "simplify", wrong)
    with pytest.raises(ExportError, match="disagrees with torch"):
        export_bundle(order, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_vocabulary_that_begins_every_text_is_exported_without_one(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(source / "tokenizer.json"))
    assert len(tokenizer.encode("").ids) == 1
    assert export_bundle(Order(str(source)), tmp_path / "bundle").parts["target"].loss is None
    with pytest.raises(ExportError, match="has 1 token in this vocabulary, and perplexity needs two: give a"):
        export_bundle(Order(str(source), eval_text=""), tmp_path / "other")
    assert not (tmp_path / "other").exists()

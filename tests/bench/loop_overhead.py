"""Time a round spends outside ONNX Runtime, for a chain of 4 (`--depth`), measured on a one-layer model.

    python tests/bench/loop_overhead.py [DRAFTER ...] [--rounds 400] [--depth 4]

The target drafts for itself, and its head knows what it says, so every token is accepted: five draft or target rows are
handled in each round. With two depths the difference is what a drafted token costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_heads import Toy, add_head

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.training.vocabulary import train_vocabulary
from paceline.runtime.assemble import Drafting, Workshop
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.names import Name
from paceline.runtime.loading import load
from paceline.runtime.model.passes import Bound
from paceline.runtime.request import Sampling

VOCAB, HIDDEN = 4096, 64


def bundle(folder: Path) -> Path:
    """A one-layer Llama with a vocabulary of its own; its next token depends on the last one alone, a random circle."""
    source, out = folder / "model", folder / "bundle"
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    model, rng = LlamaForCausalLM(config), np.random.default_rng(0)
    says = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
    says /= np.linalg.norm(says, axis=1, keepdims=True)
    circle = rng.permutation(VOCAB)
    speaks = np.empty_like(says)
    speaks[np.roll(circle, -1)] = 3 * says[circle]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(says))
        model.lm_head.weight.copy_(torch.from_numpy(speaks))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(source)
    train_vocabulary(["some words to make a vocabulary of"], VOCAB).save(str(source / "tokenizer.json"))
    export_bundle(Order(str(source), drafters={"same": str(source)}, taps=("hidden",)), out)
    nothing = np.zeros((HIDDEN, HIDDEN), np.float32)
    toy = Toy(nothing, says, nothing, np.ascontiguousarray(8 * speaks.T), np.arange(VOCAB))
    add_head(out, "knows", toy, ["hidden"], (4,))
    return out


def main() -> None:
    """Print how long a round takes, in and outside ONNX Runtime: the best tenth and the median of the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("drafters", nargs="*", default=["none", "chain", "head", "lookup", "recycle"])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--accept", default="coupled")
    given = parser.parse_args()
    inside = [0.0]
    run = Bound.run

    def timed(self: Bound, shrink: bool = False) -> None:
        begun = time.perf_counter()
        run(self, shrink)
        inside[0] += time.perf_counter() - begun

    drafting = Workshop.drafting

    def fixed(self: Workshop, name: Name) -> Drafting:  # a toy is not always as sure of itself as it might be
        made = drafting(self, name)
        return (
            made if name.auto or name.plain else replace(made, control=FixedLimit(given.depth, given.depth))
        )

    Bound.run, Workshop.drafting = timed, fixed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        session = load(
            bundle(Path(folder)), threads=1, drafter="none", draft_depth=given.depth, max_nodes=given.depth
        )
        for drafter in given.drafters:
            session.set_drafter(drafter)
            session.reset()
            whole, outside = [], []
            seen, begun, before = 0, time.perf_counter(), inside[0]
            for _ in session.generate(
                [5, 6, 7],
                max_tokens=min((1 + given.depth) * given.rounds, 4000),
                sampling=Sampling(given.temp),
                accept=given.accept,
            ):
                if session.stats.rounds > seen:
                    now = time.perf_counter()
                    whole.append(now - begun)
                    outside.append(now - begun - (inside[0] - before))
                    seen, begun, before = session.stats.rounds, now, inside[0]
            per_round = session.stats.tokens_per_round
            (best, usual), (least, half) = (1e6 * np.percentile(t, [10, 50]) for t in (whole, outside))
            print(
                f"{drafter:8} {per_round:.2f} tokens a round, {best:5.0f} us a round in the best tenth, {usual:5.0f} "
                f"in the median, of it {least:4.0f} and {half:4.0f} us outside ONNX Runtime"
            )


if __name__ == "__main__":
    main()

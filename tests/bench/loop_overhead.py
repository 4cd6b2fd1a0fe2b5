"""Time a round spends outside ONNX Runtime, for a chain of 4, measured on a one-layer model.

    python tests/bench/loop_overhead.py [DRAFTER ...] [--rounds 400]

The target drafts for itself, so every token is accepted: five draft or target rows are handled in each round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.training.vocabulary import train_vocabulary
from paceline.runtime.assemble import Drafting, Workshop
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.kinds import Name
from paceline.runtime.loading import load
from paceline.runtime.model.passes import Bound


def bundle(folder: Path) -> Path:
    """A random one-layer Llama with a vocabulary of its own."""
    source, out = folder / "model", folder / "bundle"
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(source)
    train_vocabulary(["some words to make a vocabulary of"], 4096).save(str(source / "tokenizer.json"))
    export_bundle(Order(str(source), drafters={"same": str(source)}), out)
    return out


def main() -> None:
    """Print the median time of a round, in and outside ONNX Runtime."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("drafters", nargs="*", default=["none", "chain", "lookup", "recycle"])
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    inside = [0.0]
    run = Bound.run

    def timed(self: Bound, shrink: bool = False) -> None:
        begun = time.perf_counter()
        run(self, shrink)
        inside[0] += time.perf_counter() - begun

    drafting = Workshop.drafting

    def fixed(self: Workshop, name: Name) -> Drafting:  # a random model is never sure of itself
        made = drafting(self, name)
        return made if name.auto or name.plain else replace(made, control=FixedLimit(16, 4))

    Bound.run, Workshop.drafting = timed, fixed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        session = load(bundle(Path(folder)), threads=1, drafter="none", draft_depth=4)
        for drafter in given.drafters:
            session.set_drafter(drafter)
            session.reset()
            whole, outside = [], []
            seen, begun, before = 0, time.perf_counter(), inside[0]
            for _ in session.generate([5, 6, 7], max_tokens=5 * given.rounds):
                if session.stats.rounds > seen:
                    now = time.perf_counter()
                    whole.append(now - begun)
                    outside.append(now - begun - (inside[0] - before))
                    seen, begun, before = session.stats.rounds, now, inside[0]
            per_round = session.stats.tokens_per_round
            print(
                f"{drafter:8} {per_round:.2f} tokens a round, {1e6 * np.median(whole):6.0f} us a round, "
                f"of it {1e6 * np.median(outside):5.0f} us outside ONNX Runtime"
            )


if __name__ == "__main__":
    main()

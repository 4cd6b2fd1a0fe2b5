"""Write a random checkpoint in the shape of a known model, to measure export and speed without a download.

    python tests/bench/random_checkpoint.py OUT [--shape qwen2.5-0.5b] [--seed 0]

The weights are bfloat16 noise, the embeddings are tied, and the tokenizer is a byte-level BPE learnt from
this project's own documents: its vocabulary is far smaller than the padded one of the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "intermediate_size": 4864,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "intermediate_size": 8960,
    },
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
VOCABULARY = 151936


def write_checkpoint(out: Path, shape: str, seed: int) -> int:
    """Write a model folder with a tokenizer and return the number of parameters."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    config = Qwen2Config(
        **SHAPES[shape],
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    return model.num_parameters()


def _tokenizer() -> Tokenizer:
    root = Path(__file__).parents[2]
    text = [path.read_text(encoding="utf-8") for path in sorted(root.glob("**/*.md"))]
    text += [path.read_text(encoding="utf-8") for path in sorted(root.glob("*/*.py"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{write_checkpoint(given.out, given.shape, given.seed):,} parameters in {given.out}")

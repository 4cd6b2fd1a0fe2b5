"""Write a random checkpoint in the shape of a known model, to measure export and speed without a download.

    python tests/bench/random_checkpoint.py OUT [--shape NAME] [--seed 0]

The weights are bfloat16 noise. The tokenizer is a byte-level BPE learnt from this project's own documents: its
vocabulary is far smaller than the padded one of the model.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LLAMA, QWEN = (LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, as its configuration names them."""

    family: (
        tuple[type[LlamaConfig], type[LlamaForCausalLM]] | tuple[type[Qwen2Config], type[Qwen2ForCausalLM]]
    )
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool
    theta: float
    context: int

    def config(self) -> LlamaConfig | Qwen2Config:
        """The configuration of the family."""
        return self.family[0](
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.ffn,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            max_position_embeddings=self.context,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


SHAPES = {
    "llama-443m": Shape(LLAMA, 1024, 24, 16, 8, 4096, 32000, False, 10000.0, 4096),
    "llama-3.2-1b": Shape(LLAMA, 2048, 16, 32, 8, 8192, 128256, True, 500000.0, 4096),
    "qwen2.5-0.5b": Shape(QWEN, 896, 24, 14, 2, 4864, 151936, True, 1000000.0, 32768),
    "qwen2.5-1.5b": Shape(QWEN, 1536, 28, 12, 2, 8960, 151936, True, 1000000.0, 32768),
    "tiny": Shape(QWEN, 64, 2, 4, 2, 128, 151936, True, 1000000.0, 32768),
}


def write_checkpoint(out: Path, shape: str, seed: int) -> int:
    """Write a model folder with a tokenizer and return the number of parameters."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    sizes = SHAPES[shape]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = sizes.family[1](sizes.config())
    finally:
        torch.set_default_dtype(before)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(out)
    return int(model.num_parameters())


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

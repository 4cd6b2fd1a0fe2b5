"""Writes tiny random checkpoints with a tokenizer, as a Hugging Face folder has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

WORDS = (
    "the cat sat on the mat and the dog ran to the red ball; every morning she rides along the river, again."
)


def small_tokenizer(text: str = WORDS, extra: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE of at most 300 tokens, "<s>" and "</s>" first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.add_tokens(list(extra))
    return tokenizer


def write_checkpoint(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
    kind: str = "llama",
    **changes: Any,
) -> Path:
    """Write a two-layer model, a Llama, with a vocabulary of 320 rows; returns the folder."""
    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    config = AutoConfig.for_model(kind, **(settings | changes))
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder)
    (tokenizer or small_tokenizer()).save(str(folder / "tokenizer.json"))
    return folder


def add_json(folder: Path, name: str, **content: Any) -> None:
    """Merge fields into a JSON file of a checkpoint."""
    path = folder / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | content))

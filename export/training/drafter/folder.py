"""The folder of a trained drafter: a Hugging Face model with its target's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from paceline.export.heads.config import target_id
from paceline.export.streams import MARK
from paceline.export.tokenizer_files import TEMPLATE
from paceline.export.training.lm import write_folder
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import TOKENIZER


def save_drafter(model: LlamaForCausalLM, bundle: Bundle, folder: Path, accepted: list[float] | None) -> None:
    """Write it, every file whole. accepted: by level, how often its drafts were right."""
    vocabulary = (bundle.folder / TOKENIZER).read_text(encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
    }
    ends = sorted(bundle.generation.eos_ids)
    if ends and (end := Tokenizer.from_str(vocabulary).id_to_token(ends[0])) is not None:
        settings["eos_token"] = end
    if (bundle.folder / TEMPLATE).is_file():
        settings["chat_template"] = (bundle.folder / TEMPLATE).read_text(encoding="utf-8")
    target = msgspec.to_builtins(target_id(bundle.manifest))
    streams = model.config.vocab_size - bundle.manifest.target.vocab
    setattr(model.config, MARK, {"target": target, "acceptance": accepted or [], "streams": streams})
    texts = {TOKENIZER: vocabulary, "tokenizer_config.json": json.dumps(settings, indent=2)}
    write_folder(model, folder, texts, {})

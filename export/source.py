"""Loading a decoder for export: a local folder or a hub id, safetensors only, and who is turned away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from paceline.export.attention import IMPLEMENTATION, ExportError

__all__ = ["ExportError", "Loaded", "load_model"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready for capture: float32 weights, evaluation mode, our attention."""

    model: PreTrainedModel
    config: PretrainedConfig
    folder: Path
    """Holds the tokenizer files."""
    name: str
    licence: str
    dtype: str
    """The checkpoint's own: float16, bfloat16 or float32."""


def load_model(source: str, revision: str | None = None) -> Loaded:
    """Load a decoder from a folder or a hub id. Raises ExportError."""
    folder = Path(source)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    dtype = str(config.dtype or torch.float32).removeprefix("torch.")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        attn_implementation=IMPLEMENTATION,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return Loaded(model.eval(), config, folder, folder.name, "unknown", dtype)

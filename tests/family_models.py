"""Small random models of every family, for the exporter's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 96
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
THETA = {"rope_theta": 10000.0}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 8},
    "llama tied": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama mha": {"model_type": "llama", "num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "num_hidden_layers": 3,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 16},
    "phi3": {"model_type": "phi3", "sliding_window": 8},
    "phi3 partial": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **THETA},
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, **THETA},
        "hidden_size": 64,
    },
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 8, "use_bias": True},
    "olmo2": {"model_type": "olmo2"},
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.11,
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2},
    "cohere": {"model_type": "cohere", "logit_scale": 0.3, "use_qk_norm": False},
    "glm": {
        "model_type": "glm",
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **THETA},
    },
}

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 24,
    },
}
for _name, _scaling in SCALINGS.items():
    FAMILIES[f"rope {_name}"] = {
        "model_type": "llama",
        "head_dim": 8,
        "rope_parameters": {**THETA, **_scaling},
        "max_position_embeddings": 32 if _name == "dynamic" else 64,
    }


def write_family(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, layers: int | None = None
) -> Path:
    """Write a random instance of a family as a checkpoint folder; norms and biases are random too."""
    settings = dict(FAMILIES[name])
    if layers is not None:
        settings.update(dict.fromkeys(["num_hidden_layers", *{"n_layer"}.intersection(settings)], layers))
    config = AutoConfig.for_model(settings.pop("model_type"), **{**BASE, **settings})
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.ndim > 1 else parameter + noise * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder

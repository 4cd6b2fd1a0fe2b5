"""Writes GGUF files as llama.cpp's converter (convert_hf_to_gguf.py) writes them, from models of torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from small_checkpoints import small_tokenizer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

_BY_ARCHITECTURE = {"gemma3_text": "gemma3", "mistral": "llama"}
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.75,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
_GPT2 = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, head of its own width": ("llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "llama 3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, biases of attention": ("llama", {"attention_bias": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ),
    "mistral": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": (
        "gemma3_text",
        _GEMMA
        | {
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 16}),
    "phi3, long": ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 32}),
    "starcoder2": ("starcoder2", {"use_bias": True, "sliding_window": None}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "gpt2": ("gpt2", _GPT2),
}
"""Models by name: transformers' type, and settings."""


@dataclass
class Changes:
    """What of a file is to be another: keys (None: left out), tensors that come in addition, and types by name."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    kind: Callable[[str], Kind] = lambda name: Kind.F32


def make_model(family: str, seed: int = 3) -> Any:
    """A random model of a family, norms and biases random too, in evaluation mode."""
    torch.manual_seed(seed)
    model_type, settings = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(_SIZES | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tensors_of(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a model by GGUF's names, changed as the converter changes them."""
    config = model.config
    architecture = _architecture(config)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        values = tensor.detach().float().numpy()
        stem, _, suffix = name.rpartition(".")
        if (name == "lm_head.weight" and config.tie_word_embeddings) or suffix not in ("weight", "bias"):
            continue
        if architecture in ("llama", "smollm3") and (part := re.search(r"\.([qk])_proj$", stem)):
            heads = config.num_attention_heads if part[1] == "q" else config.num_key_value_heads
            shape = values.shape
            values = values.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight$", name):
            values = values.T
        theirs = names.get_name(stem)
        assert theirs is not None, name
        found[f"{theirs}.{suffix}"] = np.ascontiguousarray(values)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(config)
    if rope.get("rope_type") == "longrope":
        found["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
        found["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
    return found


def write_model(
    path: Path, model: Any, tokenizer: Tokenizer | None = None, changes: Changes | None = None
) -> Path:
    """A whole file; returns its path."""
    changes = changes or Changes()
    keys = keys_of(model.config) | byte_level_keys(tokenizer or small_tokenizer()) | dict(changes.keys)
    return write_file(path, keys, tensors_of(model) | dict(changes.tensors), changes.kind)


def write_file(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    kind: Callable[[str], Kind] = lambda name: Kind.F32,
    **split: Any,
) -> Path:
    """A file of these keys and tensors; vectors stay float32."""
    writer = gguf.GGUFWriter(path, str(keys.get("general.architecture", "llama")), **split)
    for key, value in keys.items():
        if key != "general.architecture" and value is not None:
            _add(writer, key, value)
    for name, values in tensors.items():
        chosen = kind(name) if values.ndim > 1 else Kind.F32
        if values.dtype != np.float32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def keys_of(config: Any) -> dict[str, Any]:
    """What the converter says of a configuration."""
    a = _architecture(config)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    whole = rope.get("full_attention", rope)
    keys = {
        "general.architecture": a,
        "general.type": "model",
        "general.name": "Tiny Model",
        "general.license": "apache-2.0",
        f"{a}.block_count": config.num_hidden_layers,
        f"{a}.context_length": config.max_position_embeddings,
        f"{a}.embedding_length": config.hidden_size,
        f"{a}.feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner,
        f"{a}.attention.head_count": heads,
    }
    for name in ("rms_norm_eps", "norm_epsilon", "layer_norm_epsilon"):
        if (value := getattr(config, name, None)) is not None:
            kind = "layer_norm_rms_epsilon" if name.startswith("rms") else "layer_norm_epsilon"
            keys[f"{a}.attention.{kind}"] = float(value)
    if a == "gpt2":
        return keys
    turned = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    keys |= {
        f"{a}.attention.head_count_kv": config.num_key_value_heads,
        f"{a}.rope.freq_base": float(whole["rope_theta"]),
        f"{a}.rope.dimension_count": turned,
        f"{a}.vocab_size": config.vocab_size,
    }
    if a != "phi3" and head_dim != config.hidden_size // heads:
        keys |= {f"{a}.attention.key_length": head_dim, f"{a}.attention.value_length": head_dim}
    if getattr(config, "sliding_window", None):
        keys[f"{a}.attention.sliding_window"] = config.sliding_window
    if a == "gemma2":
        keys[f"{a}.attn_logit_softcapping"] = config.attn_logit_softcapping
        keys[f"{a}.final_logit_softcapping"] = config.final_logit_softcapping
    if whole["rope_type"] in ("linear", "yarn"):
        keys[f"{a}.rope.scaling.type"] = whole["rope_type"]
        keys[f"{a}.rope.scaling.factor"] = whole["factor"]
    if whole["rope_type"] in ("yarn", "longrope"):
        keys[f"{a}.rope.scaling.original_context_length"] = whole["original_max_position_embeddings"]
    if whole["rope_type"] == "longrope":
        ratio = config.max_position_embeddings / whole["original_max_position_embeddings"]
        scale = np.sqrt(1 + np.log(ratio) / np.log(whole["original_max_position_embeddings"]))
        keys[f"{a}.rope.scaling.attn_factor"] = float(scale)
    return keys


def byte_level_keys(tokenizer: Tokenizer, pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """The tokenizer of a byte-level model: its special tokens are control tokens, other added ones the user's."""
    said = json.loads(tokenizer.to_str())
    added = {token["content"]: token["special"] for token in said["added_tokens"]}
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in said["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [{None: 1, True: 3, False: 4}[added.get(token)] for token, _ in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    } | {f"tokenizer.{name}": value for name, value in more.items()}


def random_blocks(kind: str, rows: int, columns: int, seed: int, scale: float = 0.01) -> np.ndarray[Any, Any]:
    """Blocks of any content with scales of about `scale`, uint8[rows, bytes of a row]."""
    rng = np.random.default_rng(seed)
    size, count = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = rng.integers(0, 256, (rows * columns // size, count), np.uint8)
    halves = {
        "Q6_K": (208,),
        "Q2_K": (80, 82),
        "Q4_1": (0, 2),
        "Q5_1": (0, 2),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
    }
    for at in halves.get(kind, (0,)):
        some = (scale * rng.uniform(0.5, 1, len(blocks))).astype(np.float16)
        blocks[:, at : at + 2] = some.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def _architecture(config: Any) -> str:
    return _BY_ARCHITECTURE.get(config.model_type, config.model_type)


def _llama3_factors(config: Any) -> np.ndarray[Any, Any]:
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    found = []
    for freq in freqs:
        length = 2 * np.pi / float(freq)
        if length < high:
            found.append(1.0)
        elif length > low:
            found.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

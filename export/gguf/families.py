"""Architectures of GGUF files as transformers knows them: configuration, names, and what llama.cpp's converter changed.

The converter is convert_hf_to_gguf.py of llama.cpp; numbers that a file leaves out are those of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.export.gguf.keys import Keys
from paceline.export.gguf.scaling import long_rope, plain_rope

Config = dict[str, Any]

_DENSE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
_NORMED_HEADS = {
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
}
_SANDWICH = {
    "blk.*.post_attention_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_norm": "model.layers.*.pre_feedforward_layernorm",
    "blk.*.post_ffw_norm": "model.layers.*.post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture is read. names: of tensors, layers as *, without .weight and .bias."""

    config: Callable[[Keys], Config]
    names: Mapping[str, str] = field(default_factory=lambda: _DENSE)
    permuted: bool = False
    """Rows of the query and key matrices stand in pairs, as llama.cpp's rotation takes them."""
    norms_above_one: bool = False
    """Norms are stored with the 1 that transformers adds."""
    transposed: tuple[str, ...] = ()
    """Matrices that transformers stores input first."""
    factors: bool = False
    """May have rope_freqs, by which frequencies are divided."""
    notes: tuple[str, ...] = ()


def _decoder(keys: Keys, model_type: str, **more: Any) -> Config:
    """What is common to decoders with rotary positions and RMS norms."""
    heads, hidden = keys.whole("attention.head_count"), keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", hidden // heads or 1)
    keys.expect("attention.value_length", head_dim)
    epsilon = keys.optional if model_type == "starcoder2" else keys.number  # which has no RMS norms
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.whole("block_count"),
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": epsilon("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.whole("context_length"),
        "hidden_act": "silu",
        "tie_word_embeddings": not keys.has("output.weight"),
        **more,
    }


def _rotary(keys: Keys, model_type: str, **more: Any) -> Config:
    """The same with one rotation for all layers, which turns whole heads."""
    config = _decoder(keys, model_type, **more)
    keys.expect("rope.dimension_count", config["head_dim"])
    return config | {"rope_parameters": plain_rope(keys)}


def _llama(keys: Keys) -> Config:
    window = keys.optional("attention.sliding_window")
    if window is not None:
        return _rotary(keys, "mistral", sliding_window=int(window))
    if keys.has("blk.0.attn_q.bias") and not keys.has("blk.0.attn_output.bias"):
        # transformers' Llama has biases on all four matrices or on none; with these three it is a Qwen2.
        return _rotary(keys, "qwen2", use_sliding_window=False)
    biased = {"attention_bias": keys.has("blk.0.attn_q.bias"), "mlp_bias": keys.has("blk.0.ffn_up.bias")}
    return _rotary(keys, "llama", **biased)


def _smollm3(keys: Keys) -> Config:
    layers = keys.whole("block_count")
    turned = [int((i + 1) % 4 != 0) for i in range(min(layers, 4096))]
    return _rotary(keys, "smollm3", no_rope_layers=turned, use_sliding_window=False)


def _qwen(model_type: str) -> Callable[[Keys], Config]:
    return lambda keys: _rotary(
        keys,
        model_type,
        use_sliding_window=False,
        **({"attention_bias": keys.has("blk.0.attn_q.bias")} if model_type == "qwen3" else {}),
    )


def _gemma(model_type: str, largest: int, pattern: int) -> Callable[[Keys], Config]:
    """largest: layers of the one size whose attention is scaled by the width of the model, not of a head."""

    def config(keys: Keys) -> Config:
        made = _decoder(keys, model_type, hidden_activation="gelu_pytorch_tanh")
        keys.expect("rope.dimension_count", made["head_dim"])
        layers, window = made["num_hidden_layers"], keys.optional("attention.sliding_window")
        del made["hidden_act"]
        if model_type == "gemma":
            return made | {"hidden_act": "gelu_pytorch_tanh", "rope_parameters": plain_rope(keys)}
        scale = keys.optional("attention.scale")
        width = made["hidden_size"] // made["num_attention_heads"] if layers == largest else made["head_dim"]
        flags = keys.array("attention.sliding_window_pattern")
        every = pattern if flags is not None else keys.whole("attention.sliding_window_pattern", pattern)
        local = flags if flags is not None else [bool((i + 1) % every) for i in range(min(layers, 4096))]
        if len(local) != min(layers, 4096):
            raise keys.wrong(
                "attention.sliding_window_pattern", f"has {len(local)} values for {layers} layers"
            )
        if window is None:
            local = [False] * len(local)
        made |= {
            "query_pre_attn_scalar": width if scale is None else scale**-2,
            "sliding_window": None if window is None else int(window),
            "layer_types": ["sliding_attention" if one else "full_attention" for one in local],
            "attn_logit_softcapping": keys.optional("attn_logit_softcapping"),
            "final_logit_softcapping": keys.optional("final_logit_softcapping"),
        }
        if model_type == "gemma2":
            made["attn_logit_softcapping"] = made["attn_logit_softcapping"] or 50.0
            made["final_logit_softcapping"] = made["final_logit_softcapping"] or 30.0
            return made | {"rope_parameters": plain_rope(keys)}
        near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
        far = plain_rope(keys, 1000000.0)
        return made | {"rope_parameters": {"sliding_attention": near, "full_attention": far}}

    return config


def _phi3(keys: Keys) -> Config:
    window = keys.optional("attention.sliding_window")
    made = _decoder(keys, "phi3", sliding_window=None if window is None else int(window))
    part = keys.whole("rope.dimension_count", made["head_dim"]) / made.pop("head_dim")
    keys.expect("attention.key_length", made["hidden_size"] // made["num_attention_heads"])
    rope = long_rope(keys, made["max_position_embeddings"]) | {"partial_rotary_factor": part}
    original = rope.get("original_max_position_embeddings", made["max_position_embeddings"])
    return made | {"rope_parameters": rope, "original_max_position_embeddings": original}


def _starcoder2(keys: Keys) -> Config:
    made = _rotary(keys, "starcoder2", norm_epsilon=keys.number("attention.layer_norm_epsilon"))
    del made["rms_norm_eps"]
    return made | {"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None}


def _gpt2(keys: Keys) -> Config:
    heads = keys.whole("attention.head_count")
    keys.expect("attention.head_count_kv", heads)
    return {
        "model_type": "gpt2",
        "n_embd": keys.whole("embedding_length"),
        "n_layer": keys.whole("block_count"),
        "n_inner": keys.whole("feed_forward_length"),
        "n_head": heads,
        "n_positions": keys.whole("context_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not keys.has("output.weight"),
    }


_NO_WINDOW = (
    "a GGUF file of this architecture cannot name a sliding window: texts longer than the original model's window are "
    "read without one, as llama.cpp reads them"
)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama, permuted=True, factors=True),
    "smollm3": Family(_smollm3, permuted=True, factors=True),
    "qwen2": Family(_qwen("qwen2")),
    "qwen3": Family(_qwen("qwen3"), _DENSE | _NORMED_HEADS),
    "gemma": Family(_gemma("gemma", 0, 0), norms_above_one=True),
    "gemma2": Family(_gemma("gemma2", 46, 2), _DENSE | _SANDWICH, norms_above_one=True),
    "gemma3": Family(_gemma("gemma3_text", 62, 6), _DENSE | _SANDWICH | _NORMED_HEADS, norms_above_one=True),
    "phi3": Family(
        _phi3,
        _DENSE
        | {
            "blk.*.attn_qkv": "model.layers.*.self_attn.qkv_proj",
            "blk.*.ffn_up": "model.layers.*.mlp.gate_up_proj",
        },
    ),
    "starcoder2": Family(
        _starcoder2,
        _DENSE | {"blk.*.ffn_up": "model.layers.*.mlp.c_fc", "blk.*.ffn_down": "model.layers.*.mlp.c_proj"},
        notes=(_NO_WINDOW,),
    ),
    "gpt2": Family(
        _gpt2, _GPT2, transposed=("blk.*.attn_qkv", "blk.*.attn_output", "blk.*.ffn_up", "blk.*.ffn_down")
    ),
}

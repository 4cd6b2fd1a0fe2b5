"""Sizes and facts of a decoder, from optimum where it knows the family, else from the model itself.

The only file that touches optimum.
"""

from __future__ import annotations

from typing import Any

from optimum.exporters.tasks import TasksManager  # type: ignore[import-untyped]
from optimum.utils import NormalizedConfigManager  # type: ignore[import-untyped]
from torch import nn
from transformers import PretrainedConfig

from paceline.export.errors import ExportError
from paceline.export.positions import longest_text
from paceline.export.report import Facts
from paceline.export.rotary import length_dependent, own_frequencies
from paceline.export.source import Loaded
from paceline.runtime.manifest import Rope

_TASK = "text-generation"


def facts(loaded: Loaded) -> Facts:
    """Return the sizes of a loaded model. Raises ExportError."""
    model, config = loaded.model, loaded.config
    if TasksManager.infer_task_from_model(type(model)) != _TASK:
        raise ExportError(f"{type(model).__name__} does not generate text")
    shapes = {(layer.kv_heads, layer.head_dim) for layer in loaded.layers}
    if len(shapes) != 1:
        raise ExportError(
            f"the layers of {type(model).__name__} have caches of different sizes: not supported"
        )
    kv_heads, head_dim = shapes.pop()
    windows = [layer.window for layer in loaded.layers if layer.window]
    layers = _size(config, "num_layers", len(loaded.layers))
    if layers != len(loaded.layers):
        raise ExportError(
            f"{type(model).__name__} runs {len(loaded.layers)} layers, but its configuration has {layers}"
        )
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return Facts(
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=_size(config, "hidden_size", config.hidden_size),
        vocab=head.weight.shape[0],
        context=longest_text(config),
        window=min(windows) if windows else None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rope=_rope(model, config),
    )


def _size(config: PretrainedConfig, name: str, otherwise: int) -> int:
    """Ask optimum; it lacks some families (gemma2, gemma3_text, starcoder2), then our own answer stands."""
    try:
        normalised = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        return int(getattr(normalised, name))
    except (KeyError, AttributeError):
        return otherwise


def _rope(model: nn.Module, config: PretrainedConfig) -> Rope | None:
    modules = length_dependent(model)
    if not modules:
        return None
    module: Any = modules[0]
    settings = config.rope_parameters
    dim = 2 * int(module.inv_freq.shape[0])
    kind = str(module.rope_type)
    if kind == "dynamic":
        return Rope(
            kind="dynamic",
            original_context=int(config.max_position_embeddings),
            dim=dim,
            base=float(settings["rope_theta"]),
            factor=float(settings["factor"]),
        )
    original = int(settings["original_max_position_embeddings"])
    (short, short_scale), (long, long_scale) = (own_frequencies(modules, original + more) for more in (0, 1))
    return Rope(
        kind="longrope",
        original_context=original,
        dim=dim,
        short=short.tolist(),
        long=long.tolist(),
        short_scale=float(short_scale),
        long_scale=float(long_scale),
    )

"""A checkpoint before its weights and its tokenizer are read: who is turned away, and why."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from paceline.export.errors import ExportError, first_line
from paceline.export.folder import find_folder, read_json
from paceline.export.gguf.find import find_gguf
from paceline.export.gguf.unpack import Unpacked, unpack
from paceline.runtime.manifest import MANIFEST

_NEVER_FOLLOWED = re.compile(
    r"attn_implementation|experts_implementation|use_kernel|auto_map|custom_pipelines|_name_or_path"
    r"|transformers_weights|id2label|label2id|num_labels"
)
"""Configuration keys that no decoder needs, dropped before transformers sees them: they can make it fetch or run
code, read other files, or fill the memory."""

_EXPERTS = re.compile(r"Experts|MoeBlock|M[oO][eE]$|MixtureOf")
_STATE_SPACE = re.compile(
    r"Mamba|SSM|R[wW][kK][vV]|Recurrent|DeltaNet|ShortConv|LinearAttention|xLSTM|Retention|R[gG]L[rR][uU]"
)
_FEW_LAYERS = 512
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
BAD_FILES = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OSError,
    RuntimeError,
    ArithmeticError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises on a folder it cannot use."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decoder that may be exported, by its configuration and by the headers of its weights."""

    folder: Path
    """Holds the tokenizer files."""
    name: str
    config: PretrainedConfig
    kind: type[PreTrainedModel]
    dtype: str
    """The checkpoint's own: float16, bfloat16 or float32."""
    gguf: Unpacked | None = None
    """The GGUF file that it comes from; the folder was made of it."""

    def named(self) -> AbstractContextManager[None]:
        """Within this block errors speak of the file that the user named."""
        return nullcontext() if self.gguf is None else self.gguf.named()


def examine(source: str, revision: str | None = None, file: str | None = None) -> Candidate:
    """Look at what a checkpoint is: a folder, a GGUF file or a hub id, of which `file` is the one GGUF file meant.

    Raises ExportError, whose message is one line.
    """
    path = find_gguf(source, revision, file)
    if path is not None:
        return _examine_gguf(path, None if Path(source).is_file() else path.with_name("README.md"))
    folder = find_folder(source, revision)
    with quiet():
        config, kind = _config(folder)
        dtype, shapes = _headers(folder)
        _check_layers(folder, config, len(shapes))
        _turn_away(folder, config, kind, shapes)
    return Candidate(folder, Path(source).absolute().name, config, kind, dtype)


def _examine_gguf(path: Path, readme: Path | None) -> Candidate:
    made = unpack(path, readme)
    with quiet(), made.named():
        config, kind = _config(made.folder)
        shapes = made.weights.shapes()
        _check_layers(made.folder, config, len(shapes))
        _turn_away(made.folder, config, kind, shapes)
    return Candidate(made.folder, made.name, config, kind, made.weights.dtype(), made)


_Shapes = dict[str, tuple[int, ...]]


def _headers(folder: Path) -> tuple[str, _Shapes]:
    """The checkpoint's precision and the shapes of its tensors, from its headers; refuse what is not safetensors."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        other = sorted(
            p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5"}
        )
        found = f"only {other[0]}, which is not read" if other else "none"
        raise ExportError(f"{folder} has no safetensors weights ({found}): save the model with safetensors")
    sizes: dict[str, int] = {}
    shapes: _Shapes = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (no mapping)
                    part = tensors.get_slice(key)
                    shapes[key] = tuple(part.get_shape())
                    sizes[part.get_dtype()] = (
                        sizes.get(part.get_dtype(), 0) + torch.Size(part.get_shape()).numel()
                    )
        except (SafetensorError, OSError) as error:
            raise ExportError(
                f"{shard}: the weights cannot be read ({first_line(error)}): fetch them again"
            ) from None
    if not sizes:
        raise ExportError(f"{folder}: the safetensors files hold no weights: fetch them again")
    kind = max(sizes, key=lambda name: sizes[name])
    if kind == "F64":
        raise ExportError(f"{folder} holds float64 weights: save the model in float32 first (model.float())")
    if kind not in _DTYPES:
        raise ExportError(
            f"{folder} holds {kind} weights: export the model as it was before it was quantised"
        )
    return _DTYPES[kind], shapes


def _check_layers(folder: Path, config: PretrainedConfig, tensors: int) -> None:
    """A layer has a tensor at least; thousands of layers without any would be built for hours."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > max(tensors, _FEW_LAYERS):
        raise ExportError(
            f"{folder / 'config.json'} says {layers} layers, and the weights are only {tensors} tensors: "
            "fetch the files again"
        )


def _config(folder: Path) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(_not_a_model(folder))
    settings = harmless(read_json(path))
    model_type = settings.get("model_type")
    if "model_type" not in settings:
        raise ExportError(f"{path} has no model_type: it is not the configuration of a Hugging Face model")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ExportError(
            f"{path}: transformers does not know the model type {str(model_type)[:80]!r}, "
            "and code that comes with a model is never run"
        )
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(settings)
    except BAD_FILES as error:
        raise ExportError(f"{path} cannot be used: {first_line(error)}") from None
    if "quantization_config" in settings:
        raise ExportError(f"{folder} is quantised: export the model as it was before")
    if config.is_encoder_decoder:
        raise ExportError(f"{model_type} is an encoder-decoder model: only decoders can be exported")
    if config.get_text_config() is not config or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ExportError(
            f"{model_type} is not a text decoder (multimodal?): only text decoders can be exported"
        )
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return config, kind


def _not_a_model(folder: Path) -> str:
    """What a folder without config.json is instead."""
    if (folder / MANIFEST).is_file():
        return f"{folder} is a bundle already: export the Hugging Face model that it was made from"
    if (folder / "model_index.json").is_file():
        return f"{folder} is a pipeline of several models (diffusers): only text decoders can be exported"
    inside = sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")])
    if inside:
        return f"{folder} has no config.json, and {inside[-1].parent} has one: export that folder"
    return f"{folder} has no config.json: not a Hugging Face model folder"


def harmless(value: Any) -> Any:
    """Drop every key that could make transformers fetch or run something, at any depth; read infinities."""
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return float(value["__float__"])
    if isinstance(value, dict):
        return {key: harmless(item) for key, item in value.items() if not _NEVER_FOLLOWED.search(key)}
    if isinstance(value, list):
        return [harmless(item) for item in value]
    return value


def _turn_away(folder: Path, config: PretrainedConfig, kind: type[PreTrainedModel], shapes: _Shapes) -> None:
    """Look at the model's parts before its weights are read, and refuse by name what cannot be exported."""
    try:
        with torch.device("meta"):
            make: Any = kind._from_config
            shape: nn.Module = make(copy.deepcopy(config), attn_implementation="eager")
    except BAD_FILES as error:
        raise ExportError(
            f"{kind.__name__} cannot be built from its config.json: {first_line(error)}"
        ) from None
    for name, tensor in shape.state_dict().items():
        if (found := shapes.get(name)) is not None and found != tuple(tensor.shape):
            raise ExportError(
                f"{folder}: {name} has the shape {list(found)} in the weights and {list(tensor.shape)} by "
                "config.json: save both with the same program, or fetch them again"
            )
    for name, module in shape.named_modules():
        if isinstance(module, PreTrainedModel):
            continue
        part = type(module).__name__
        if _EXPERTS.search(part) or name.endswith(".experts"):
            raise ExportError(f"{kind.__name__} is a mixture of experts ({name} is {part}): not supported")
        if _STATE_SPACE.search(part):
            raise ExportError(
                f"{kind.__name__} is a state-space or hybrid model ({name} is {part}): not supported"
            )
    if not kind._supports_attention_backend:
        name, part = _first_attention(shape)
        raise ExportError(
            f"{kind.__name__} does not follow transformers' attention interface: {name} ({part}) does its own"
        )


def _first_attention(model: nn.Module) -> tuple[str, str]:
    parts = [(name, type(module).__name__) for name, module in model.named_modules()]
    return next((found for found in parts if "attention" in found[1].lower()), parts[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal: the exporter has its own."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    bar: dict[bool, Any] = {
        True: transformers_logging.enable_progress_bar,
        False: transformers_logging.disable_progress_bar,
    }
    transformers_logging.set_verbosity(logging.ERROR)
    bar[False]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        bar[bars]()

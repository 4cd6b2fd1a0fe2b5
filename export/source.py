"""Loading a decoder for export: its weights in float32, and what each layer asks of its attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from paceline.export.attention import IMPLEMENTATION, Layer, rehearse
from paceline.export.candidate import BAD_FILES, Candidate, examine, quiet
from paceline.export.checkpoint import check_numbers, left_out
from paceline.export.errors import ExportError, first_line
from paceline.export.folder import licence_of
from paceline.export.gguf.unpack import Unpacked
from paceline.export.positions import PLAIN_ROPE, divided, longest_text, plain_frequencies


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
    layers: tuple[Layer, ...]
    """What each decoder layer asks of its attention, first layer first."""
    notes: tuple[str, ...] = ()
    """What of the weights was left out."""
    gguf: Unpacked | None = None
    """The GGUF file that it comes from."""


def load_model(source: str | Candidate) -> Loaded:
    """Load a decoder by its folder or hub id, or as it was examined. Raises ExportError, whose message is one line."""
    given = examine(source) if isinstance(source, str) else source
    with given.named():
        return _load(given)


def _load(given: Candidate) -> Loaded:
    with quiet():
        model, notes = _weights(given)
    check_numbers(given.folder, model)
    try:
        layers = tuple(rehearse(model, longest_text(given.config)))
    except ExportError:
        raise
    except BAD_FILES as error:
        raise ExportError(
            f"{given.kind.__name__} does not run as its config.json says: {first_line(error)}"
        ) from None
    licence = licence_of(given.folder)
    return Loaded(
        model, model.config, given.folder, given.name, licence, given.dtype, layers, notes, given.gguf
    )


def _weights(given: Candidate) -> tuple[PreTrainedModel, tuple[str, ...]]:
    name = given.kind.__name__
    try:
        read: Any = given.kind.from_pretrained
        model, report = read(
            given.folder if given.gguf is None else None,
            config=given.config,
            state_dict=None if given.gguf is None else _tensors(given.gguf),
            attn_implementation=IMPLEMENTATION,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except BAD_FILES as error:
        raise ExportError(f"{given.folder} cannot be loaded as {name}: {first_line(error)}") from None
    wrong = sorted([*report["missing_keys"], *(str(key) for key in report.get("mismatched_keys", []))])
    if wrong:
        raise ExportError(f"{given.folder} lacks weights of {name}, such as {wrong[0]}: fetch it again")
    if given.gguf is None:
        return model.eval(), left_out(report["unexpected_keys"])
    if more := sorted(report["unexpected_keys"]):
        raise ExportError(
            f"{given.folder} holds weights that {name} does not have, such as {more[0]}: not carried"
        )
    _set_frequencies(model, given.gguf)
    return model.eval(), given.gguf.notes


def _tensors(gguf: Unpacked) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in gguf.weights.arrays().items()}


def _set_frequencies(model: PreTrainedModel, gguf: Unpacked) -> None:
    """Turn positions by the file's own frequencies, where those do not depend on a length. Raises ExportError."""
    file, rope = gguf.weights.file, gguf.weights.config.get("rope_parameters") or {}
    for module in [module for module in model.modules() if hasattr(module, "inv_freq")]:
        old: Any = module.inv_freq
        plain = rope.get("rope_type") in PLAIN_ROPE
        found = plain_frequencies(rope, len(old)) if plain else old.numpy()
        module.inv_freq = torch.from_numpy(divided(file, found).copy())
        if hasattr(module, "original_inv_freq"):
            module.original_inv_freq = module.inv_freq.clone()

"""What drafter is wanted, whether it can be had, and the weights that it begins with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from paceline.export.folder import read_json
from paceline.export.heads.config import CONFIG, WEIGHTS, TargetId
from paceline.export.streams import MARK
from paceline.export.training.heads.choice import CHECKPOINT, CURVE
from paceline.export.training.lm import Shape
from paceline.export.training.start import Start, Weights
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.part import Part

Table = Literal["projected", "random"]
TEXT = "text"
"""Folder within OUT of what was learnt from texts alone."""
_SHARE = 0.09
"""Of the target's parameters, at most, where nobody says otherwise."""
_LAYERS_OF = 10
"""So many layers of the target are one of the drafter, which has two at least."""
_STEP = 32
"""Columns are a multiple of it."""
_WIDE = 64
"""Columns of an attention head, where the whole divides by it."""
_SPREAD = 0.02
"""Standard deviation of a table that was not learnt yet, as Llama has it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is wanted; None: as in OUT, or by the target."""

    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    ffn: int | None = None
    streams: int | None = None


def sizes_from(start: Start, wanted: Sizes, target: Part) -> Sizes:
    """The sizes of weights to begin with. Raises ValueError where others are wanted, or where they lack tokens."""
    if start.shape["vocab"] < target.vocab:
        raise ValueError(
            f"the weights of --from know {start.shape['vocab']} tokens where the target has {target.vocab}: "
            "leave --from out"
        )
    for field in fields(Sizes):
        asked, has = getattr(wanted, field.name), start.shape.get(field.name)
        if None not in (asked, has) and asked != has:
            raise ValueError(
                f"the weights of --from have {field.name} {has}, not {asked}: leave --{field.name} out"
            )
    named = {field.name: start.shape[field.name] for field in fields(Sizes) if field.name in start.shape}
    return replace(wanted, **named)


def shape_for(target: Part, wanted: Sizes) -> Shape:
    """What is not given follows from the target, whose tokens come before the streams.

    Raises ValueError for sizes that do not go together.
    """
    layers = wanted.layers or max(2, target.layers // _LAYERS_OF)
    hidden = wanted.hidden or _widest(target, layers)
    heads = wanted.heads or hidden // (_WIDE if hidden % _WIDE == 0 else _STEP) or 1
    kv_heads = wanted.kv_heads or 1
    if hidden % heads or (hidden // heads) % 2:
        raise ValueError(f"--hidden {hidden} does not split into {heads} heads of even width: choose --heads")
    if heads % kv_heads:
        raise ValueError(
            f"{heads} heads do not share {kv_heads} key/value heads evenly: choose other --kv-heads"
        )
    ffn = wanted.ffn or -(-8 * hidden // 3 // _STEP) * _STEP
    vocab = target.vocab + (wanted.streams or 0)
    return Shape(hidden, layers, heads, kv_heads, ffn, vocab, target.context)


def _widest(target: Part, layers: int) -> int:
    """The most columns, up to the target's, with which it has `_SHARE` of the target's parameters."""
    widths = range(_STEP, max(_STEP, target.hidden) + 1, _STEP)
    fitting = [w for w in widths if w * target.vocab + 12 * layers * w * w <= _SHARE * target.parameters]
    return max(fitting, default=_STEP)


def check_drafter(folder: Path, wanted: Sizes, target: TargetId, part: Part) -> Shape:
    """The shape of the drafter to train. Raises ValueError where the folder holds something else than that."""
    if not (folder / CONFIG).is_file():
        if there := [name for name in (WEIGHTS, CHECKPOINT, CURVE) if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds {' and '.join(there)} of something else than a drafter: train into another folder"
            )
        return shape_for(part, wanted)
    config = read_json(folder / CONFIG)
    mark = config.get(MARK)
    if not isinstance(mark, dict) or not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds something else than a drafter of 'paceline train drafter': train into another folder"
        )
    named = mark.get("target")
    if not isinstance(named, dict) or (named.get("data") or named.get("graph")) != target.weights:
        raise ValueError(f"{folder} holds a drafter for another target: train into another folder")
    shape = _shape_of(folder, config)
    for name in Sizes.__slots__:
        asked = getattr(wanted, name)
        has = shape.vocab - part.vocab if name == "streams" else getattr(shape, name)
        if asked is not None and asked != has:
            raise ValueError(
                f"{folder} holds a drafter of {name} {has}, not {asked}: train into another folder, or delete it"
            )
    return shape


def _shape_of(folder: Path, config: dict[str, Any]) -> Shape:
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    )
    if missing := [name for name in names if not isinstance(config.get(name), int)]:
        raise ValueError(f"{folder / CONFIG} has no {missing[0]}: train into another folder")
    return Shape(*(config[name] for name in names))


def where_begun(out: Path, texts: bool) -> Path:
    """The folder whose weights are gone on with: that of the texts, where they come first and nothing came after."""
    return out / TEXT if texts and not (out / WEIGHTS).is_file() else out


def start_drafter(
    folder: Path,
    shape: Shape,
    bundle: Bundle,
    table: Tensor | None,
    counts: npt.NDArray[np.int64],
    seed: int,
    begin: Weights | None = None,
) -> LlamaForCausalLM:
    """The drafter of a folder, else a new one. table float32[V, H]: of the target, to begin with its projection.

    counts int64[V]: how often the target writes each token. begin: weights to begin with, but for their streams.
    """
    torch.manual_seed(seed)
    model = shape.build(sorted(bundle.generation.eos_ids))
    if (folder / WEIGHTS).is_file():
        try:
            given = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
            model.load_state_dict({**given, "lm_head.weight": given["model.embed_tokens.weight"]})
        except (RuntimeError, KeyError, SafetensorError):
            raise ValueError(
                f"{folder / WEIGHTS} is damaged, or not of the model in {CONFIG}: train into another folder"
            ) from None
    elif begin is not None:
        vocab, own = bundle.manifest.target.vocab, model.state_dict()
        with torch.no_grad():
            for name, value in begin.items():
                if name != "lm_head.weight":  # it is the table
                    rows = vocab if "embed" in name else len(value)
                    own[name][:rows] = value[:rows]
    elif table is not None:
        with torch.no_grad():
            model.model.embed_tokens.weight[: len(table)] = projected(table, counts, shape.hidden)
    return model


def projected(table: Tensor, counts: npt.NDArray[np.int64], width: int) -> Tensor:
    """float32[V, width]: the projection of a table [V, H] that keeps most of how its rows differ.

    Rows count by how often their tokens stand in `counts`, and once more. The columns are turned at random, so that
    all carry alike: the optimiser takes steps of one size. A width beyond the table's is filled with noise.
    """
    weight = torch.from_numpy(counts.astype(np.float32) + 1.0)
    weight /= weight.sum()
    centred = table - weight @ table
    spread = (centred * weight[:, None]).T @ centred
    _, vectors = torch.linalg.eigh(spread.double())
    kept = centred @ vectors[:, -width:].float()
    kept = kept * (_SPREAD * (width / kept.shape[1]) ** 0.5 / float(kept.std()))
    if kept.shape[1] < width:
        kept = torch.cat([kept, torch.zeros(len(kept), width - kept.shape[1])], 1)
    turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
    made: Tensor = kept @ turn.float()
    return made

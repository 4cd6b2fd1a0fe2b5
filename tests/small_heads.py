"""Writes tiny draft heads of random weights, as training leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from paceline.export.heads.checkpoint import VOCABULARY, expected_shapes
from paceline.export.heads.config import CONFIG, WEIGHTS, HeadConfig, TargetId
from paceline.runtime.manifest import Part

Tensors = dict[str, npt.NDArray[Any]]
TAPS = ("hidden.0", "hidden.1", "hidden")


def small_config(target: Part, method: str, **changes: Any) -> HeadConfig:
    """A head for this target, with half of its vocabulary."""
    settings: dict[str, Any] = {
        "method": method,
        "hidden": target.hidden,
        "target_vocab": target.vocab,
        "taps": {"eagle": ["hidden"], "kangaroo": ["hidden.0"]}.get(method, list(TAPS)),
        "vocab": target.vocab // 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 12,
        "inner": 64,
        "rope_theta": 10000.0,
        "epsilon": 1e-5,
        "depth": {"eagle": 8, "eagle3": 8, "dflash": 7, "falcon": 8}.get(method, 4),
        "layers": 2 if method == "dflash" else 1,
        "tied": False,
        "target": TargetId(name="tiny", graph="0" * 64, data="1" * 64),
        "acceptance": [0.5, 0.25],
    }
    return HeadConfig(**(settings | changes))


def small_tensors(config: HeadConfig, seed: int = 5) -> Tensors:
    """Random weights whose logits differ clearly from row to row."""
    rng = np.random.default_rng(seed)
    found: Tensors = {}
    for name, shape in expected_shapes(config).items():
        if name == VOCABULARY:
            ids = rng.choice(config.target_vocab, config.vocab, replace=False)
            found[name] = np.sort(ids).astype(np.int32)
        elif len(shape) == 1:
            found[name] = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        else:
            found[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    return found


def write_small_head(folder: Path, config: HeadConfig, tensors: Tensors | None = None, **keys: Any) -> Path:
    """Write a head's folder; `keys` stand in its config.json in place of others, None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "paceline_head": 1,
        **{name: getattr(config, name) for name in config.__struct_fields__ if name != "target"},
        "target": {name: getattr(config.target, name) for name in config.target.__struct_fields__},
        **keys,
    }
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    save_file(small_tensors(config) if tensors is None else tensors, folder / WEIGHTS)
    return folder

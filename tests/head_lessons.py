"""Conversations of the storyteller with its hidden states, as torch computes them, and small heads for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from storybook import requests

from paceline.embedded import embedded_bundle
from paceline.export.heads.config import HeadConfig, Method, TargetId
from paceline.export.training.heads.checkpoint import new_head
from paceline.export.training.heads.head import DraftHead
from paceline.export.training.heads.target import Target, read_target
from paceline.export.training.lm import Shape
from paceline.export.training.start import start_from
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.generation import GENERATION, read_generation
from paceline.runtime.text.text import Text

READS = (1, 4, 6)
"""Layers whose hidden states are tapped."""
TAPS = [f"hidden.{layer}" for layer in READS]


@dataclass(frozen=True)
class Talk:
    tokens: np.ndarray
    prompt: int
    taps: np.ndarray


@cache
def storyteller() -> Target:
    return read_target(open_bundle(embedded_bundle()))


def encoded(texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the storyteller."""
    folder = embedded_bundle()
    text = Text.load(folder, read_generation(folder / GENERATION, storyteller().vocab))
    return [text.encode(line) for line in texts]


def continued(prompts: Sequence[Sequence[int]], length: int) -> list[Talk]:
    """Prompts of one length that the storyteller goes on with, greedily, to `length` tokens."""
    weights, sizes = start_from(embedded_bundle())
    model = Shape(**sizes).build().eval()
    model.load_state_dict(weights, strict=False)
    given = torch.tensor(prompts)
    ids = model.generate(
        given,
        attention_mask=torch.ones_like(given),  # else the first token passes for padding
        max_new_tokens=length - given.shape[1],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.no_grad():
        seen = model(ids, output_hidden_states=True).hidden_states
    states = torch.stack([*(seen[layer + 1] for layer in READS), seen[-1]], 2).half().numpy()
    states[:, -1] = 0
    asked = given.shape[1]
    return [Talk(row.astype(np.int32), asked, taps) for row, taps in zip(ids.numpy(), states, strict=True)]


@cache
def talks(count: int = 40, length: int = 50, prompt: int = 9) -> list[Talk]:
    """Greedy stories, all of one length."""
    return continued([ids[:prompt] for ids in encoded(requests(4 * count)[::4])], length)


def tiny_head(method: Method, seed: int = 0, **other: object) -> DraftHead:
    """A head of no target, with random weights and every third id in its vocabulary."""
    sizes = {
        "method": method,
        "hidden": 12,
        "target_vocab": 60,
        "taps": {"eagle": ["hidden"], "kangaroo": TAPS[:1]}.get(method, TAPS),
        "vocab": 20,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "inner": 16,
        "rope_theta": 100.0,
        "epsilon": 1e-5,
        "depth": 5,
        "layers": 2 if method == "dflash" else 1,
        "tied": False,
        "target": TargetId(name="none", graph="", data=""),
    }
    torch.manual_seed(seed)
    head = new_head(HeadConfig(**{**sizes, **other}))  # type: ignore[arg-type]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    head.know(torch.arange(1, 60, 3))
    return head

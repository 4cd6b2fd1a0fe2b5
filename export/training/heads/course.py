"""A head to train, with what it learns from and what it is measured on: made of a bundle and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.export.heads.config import HeadConfig, check_made
from paceline.export.training.answers import FINAL
from paceline.export.training.heads.batches import Batches, Conversation, held_out
from paceline.export.training.heads.checkpoint import load_head, new_head
from paceline.export.training.heads.choice import USUAL, VOCAB, Choice, check_choice, depth_of
from paceline.export.training.heads.dflash import DFlash
from paceline.export.training.heads.falcon import Falcon
from paceline.export.training.heads.head import DraftHead, PairedHead
from paceline.export.training.heads.kangaroo import Kangaroo
from paceline.export.training.heads.measure import Yardstick
from paceline.export.training.heads.target import Target, read_target
from paceline.export.training.heads.vocabulary import choose_vocabulary, coverage
from paceline.runtime.bundle.bundle import Bundle

_HELD_OUT_ONE_IN = 20
_SOFT = 0.3
"""Of the size that the target's last states have: a new head is not sure of what it says yet."""
_MEASURED = 3000
"""Tokens of held-out answers that the head is measured on."""


@dataclass(frozen=True, slots=True)
class Course:
    """All that training needs. covered: share of the tokens of held-out answers that the head's vocabulary has."""

    head: DraftHead
    target: Target
    batches: Batches
    yardstick: Yardstick
    covered: float


def make_course(
    folder: Path,
    bundle: Bundle,
    choice: Choice,
    conversations: Sequence[Conversation],
    taps: Sequence[str],
    size: int,
    longest: int,
    seed: int,
    prompts: float = 0.0,
    given: Sequence[str] = (),
) -> Course:
    """taps: those that a head reads, of conversations whose taps are `given`, by default these, and FINAL; size: tokens
    of a batch; prompts: share of the places in prompts that are learnt too.

    Raises ValueError with one line.
    """
    config = check_choice(folder, choice)
    learnt, kept = held_out(conversations, _HELD_OUT_ONE_IN)
    target = read_target(bundle)
    if config is None:
        head = start_head(choice, target, taps, learnt, bundle.generation.eos_ids, seed)
    else:
        head = load_head(folder)
        if config.target.weights != target.name.weights:
            raise ValueError(
                f"{folder} holds a head of another target, {config.target.name}: train into another folder"
            )
        if tuple(config.taps) != tuple(taps):
            raise ValueError(
                f"{folder} holds a head that reads {', '.join(config.taps)}, and the answers are for one that reads "
                f"{', '.join(taps)}: train into another folder, or give its own --answers"
            )
    last = conversations[0].taps.shape[1] - 1
    reads = [last] if tuple(taps) == (FINAL,) else [list(given or taps).index(tap) for tap in taps]
    covered = coverage(kept, head.vocabulary.numpy(), target.vocab)
    batches = Batches(learnt, size, longest, reads, seed, prompts)
    yardstick = Yardstick(kept, target, head.vocabulary, reads, longest, _MEASURED)
    return Course(head, target, batches, yardstick, covered)


def start_head(
    choice: Choice,
    target: Target,
    taps: Sequence[str],
    learnt: Sequence[Conversation],
    ends: Sequence[int],
    seed: int,
) -> DraftHead:
    """A new head that begins with the target's rows of the tokens that the target writes most often."""
    vocabulary = choose_vocabulary(learnt, choice.vocab or VOCAB, target.vocab, ends)
    config = HeadConfig(
        method=choice.method,
        hidden=target.hidden,
        target_vocab=target.vocab,
        taps=list(taps),
        vocab=len(vocabulary),
        heads=target.heads,
        kv_heads=target.kv_heads,
        head_dim=target.head_dim,
        inner=choice.inner or target.inner,
        rope_theta=target.rope_theta,
        epsilon=target.epsilon,
        depth=depth_of(choice, None),
        layers=choice.layers or USUAL[choice.method].layers,
        tied=bool(choice.tied),
        target=target.name,
    )
    check_made(config)
    torch.manual_seed(seed)
    head = new_head(config)
    ids = torch.from_numpy(vocabulary)
    head.know(ids)
    rows = ids.to(torch.int64)
    with torch.no_grad():
        # What the last tap says as it stands: a start that the LM head understands.
        if isinstance(head, Kangaroo):
            head.final_norm.weight.copy_(_SOFT * target.norm)
        else:
            fc = head.get_parameter("fc.weight")
            fc[:, -target.hidden :] += torch.eye(target.hidden)
        if head.embeds:
            head.embed.weight[:-1] = target.head[rows] if config.tied else target.embedding[rows]
            head.embed.weight[-1] = target.embedding.mean(0)
            if isinstance(head, PairedHead | DFlash):
                head.final_norm.weight.copy_(_SOFT * target.norm)
            if isinstance(head, DFlash | Falcon):
                head.mask.normal_(std=float(target.embedding.std()))
        elif not isinstance(head, Kangaroo):
            fc.mul_(_SOFT * target.norm[:, None])
        if not config.tied:
            head.head.weight.copy_(target.head[rows])
    return head

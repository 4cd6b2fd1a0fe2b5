"""What the user wants exported, and choices that do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from paceline.export.errors import ExportError
from paceline.export.heads.config import QUANTS, HeadQuant
from paceline.export.quantize import BITS
from paceline.export.storage import LOSSLESS, Quant
from paceline.runtime.manifest import RESERVED_NAMES, as_label

PROFILES = ("cpu", "portable", "static", "cpu+static")
_PLANNED = ("cuda",)
STATIC_ROWS = (1, 4, 8, 16)
"""Rows of the static graphs, where the order says nothing."""
LEAST_BITS, MOST_BITS = 4.5, 8.5
"""Of a weight on average: blocks of 64 with 4 bits, and of 32 with 8, scales included."""
MOST_RANK = 64
"""Of adapters."""
_TAP = re.compile(r"hidden(\.[0-9]+)?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Order:
    """What to export. source and the drafters' values are local folders, GGUF files or hub ids.

    quant: None keeps every value, in the blocks of a GGUF file where it comes from one. file: the GGUF file of the
    folder or hub id that is meant. block: weights that share a scale ("channel": a whole column); None is 32, and 128
    for int4. bits: int4 becomes a recipe of this size in bits a weight, scales included, each matrix with a format of
    its own. calibrate: round 4-bit matrices so that the model keeps its outputs on a text: on calibration_text, or on
    text that it writes itself; with `bits` the recipe measures on it. None is a recipe of 4.85 bits; where there can
    be none (a block, the portable profile), calibration below 200 M parameters. profile: "cpu" for our native kernels
    (it runs everywhere else too, but slower), "portable" for what every ONNX Runtime has, "static" for that and
    graphs of fixed sizes, which accelerators take whole, "cpu+static" for a part that has these beside the one for our
    kernels. profile_draft: of the draft models, None as of the target.
    static_rows, static_contexts: sizes of static graphs, new rows and tokens of the text, ascending; no contexts:
    what suits the model's own. static_type: what they compute in. eval_text: perplexity on it is measured before and
    after. name, licence: None takes them from the checkpoint. heads: folders of trained heads, whose taps the target
    gets besides `taps`; head_quant: how their matrices are stored. adapt: rank of the adapters that draft models get,
    or the model where there are none.
    """

    source: str
    revision: str | None = None
    file: str | None = None
    drafters: Mapping[str, str] = field(default_factory=dict)
    quant: Quant | None = None
    block: int | Literal["channel"] | None = None
    bits: float | None = None
    calibrate: bool | None = None
    calibration_text: str | None = None
    profile: str = "cpu"
    taps: tuple[str, ...] = ()
    name: str | None = None
    licence: str | None = None
    eval_text: str | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    head_quant: HeadQuant = "int8"
    adapt: int | None = None
    profile_draft: str | None = None
    static_rows: tuple[int, ...] = STATIC_ROWS
    static_contexts: tuple[int, ...] = ()
    static_type: Literal["fp32", "fp16"] = "fp32"

    def of(self, part: str) -> Order:
        """The order for a part: `target`, or a draft model, which may have a profile of its own."""
        if part == "target" or self.profile_draft is None:
            return self
        return replace(self, profile=self.profile_draft)

    @property
    def static(self) -> bool:
        """Whether a part gets static graphs."""
        return self.profile.endswith("static")

    @property
    def packed(self) -> bool:
        """Whether a part's own graph is made for the native kernels."""
        return self.profile.startswith("cpu")


def check_order(order: Order) -> None:
    """Raise ValueError where choices do not go together, or are none."""
    for profile in (order.profile, order.profile_draft):
        if profile not in (None, *PROFILES):
            known = "does not exist yet" if profile in _PLANNED else "is unknown"
            raise ValueError(f"profile {profile} {known}: use --profile {', '.join(PROFILES)}")
    _check_sizes(order)
    if order.quant not in (None, *LOSSLESS, *BITS):
        raise ValueError(f"unknown --quant {order.quant!r}: use none, int8 or int4, or keep for a GGUF file")
    if order.calibrate and order.quant != "int4":
        raise ValueError("--calibrate needs --quant int4: 8-bit rounding loses too little to be worth it")
    if order.block is not None and order.quant not in BITS:
        raise ValueError("--block needs --quant int8 or int4")
    if order.block == "channel":
        if order.quant != "int8" or not order.packed:
            raise ValueError("--block channel needs --quant int8 and --profile cpu")
    elif order.block not in (None, 32, 128):
        raise ValueError(f"--block {order.block} is not supported: use 32, 128 or channel")
    if order.bits is not None:
        if order.quant != "int4":
            raise ValueError(
                f"--bits is a size for --quant int4: give that too, in place of {order.quant or 'none'}"
            )
        if not order.packed:
            raise ValueError(f"--bits needs --profile cpu, and not {order.profile}: leave one of them out")
        if order.block is not None:
            raise ValueError("--bits chooses a block for each matrix: leave --block out")
        if not LEAST_BITS <= order.bits <= MOST_BITS:
            raise ValueError(f"--bits {order.bits:g} is not supported: use {LEAST_BITS:g} to {MOST_BITS:g}")
    if order.adapt is not None:
        check_rank(order.adapt)
        learning = order.of("") if order.drafters else order
        if learning.profile != "cpu":
            raise ValueError(
                f"--adapt needs --profile cpu, and not {learning.profile}: leave one of them out"
            )
    for flag, given in (("--name", order.name), ("--licence", order.licence)):
        if given is not None and given != as_label(given):
            raise ValueError(f"{flag} takes at most 200 characters, on one line, without control characters")
    for tap in order.taps:
        if not _TAP.fullmatch(tap):
            raise ValueError(f"no tap {tap!r}: taps are 'hidden' and 'hidden.0', 'hidden.1' and so on")
    if order.head_quant not in QUANTS:
        raise ValueError(f"unknown --head-quant {order.head_quant!r}: use none, int8 or int4")
    if both := sorted(order.drafters.keys() & order.heads.keys()):
        raise ValueError(
            f"a drafter and a head have the same name {both[0]!r}: choose another one for one of them"
        )
    for name in (*order.drafters, *order.heads):
        check_name(name)


def _check_sizes(order: Order) -> None:
    """Sizes of static graphs, where there are to be some."""
    if order.profile_draft is not None and not order.drafters:
        raise ValueError("--profile-draft is for draft models: give --drafter too, or leave it out")
    for flag, given, least, most, usual in (
        ("--static-rows", order.static_rows, 1, 256, "1,4,16"),
        ("--static-context", order.static_contexts, 32, 2**20, "256,1024"),
    ):
        if list(given) != sorted({*given}) or len(given) > 8 or not all(least <= n <= most for n in given):
            raise ValueError(f"{flag} takes up to 8 sizes from {least} to {most}, ascending, as in {usual}")
    if order.static_rows[:1] != (1,):
        raise ValueError("--static-rows begins with 1: most passes have one row")
    wanted = any(profile.endswith("static") for profile in (order.profile, order.profile_draft or ""))
    changed = order.static_rows != STATIC_ROWS or order.static_contexts or order.static_type != "fp32"
    if not wanted and changed:
        raise ValueError(
            "--static-rows, --static-context and --static-type are for --profile static: give that too"
        )
    if order.static_type not in ("fp32", "fp16"):
        raise ValueError(f"unknown --static-type {order.static_type!r}: use fp32 or fp16")


def check_rank(rank: int) -> None:
    """Raise ValueError for a rank that no adapter has."""
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"--adapt is the rank of adapters, from 1 to {MOST_RANK}, not {rank}")


def check_taps(taps: Iterable[str], layers: int) -> None:
    """Raise ExportError for a tap that a model of so many layers does not have."""
    for tap in taps:
        if not _TAP.fullmatch(tap) or (tap != "hidden" and int(tap.partition(".")[2]) >= layers):
            raise ExportError(f"no tap {tap!r}: taps are 'hidden' and 'hidden.0' to 'hidden.{layers - 1}'")


def check_name(name: str) -> None:
    """Raise ValueError for what no drafter may be called."""
    if name in RESERVED_NAMES:
        raise ValueError(f"a drafter may not be named {name!r}: the word is taken, choose another one")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a drafter: use a-z, 0-9, '.', '_' and '-'")

"""Rounding that follows a text, as an order asks: calibration of the weights in place, or a recipe for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from paceline.export.calibrate import (
    CALIBRATION_ROWS,
    calibrate,
    calibration_length,
    calibration_text,
    text_rows,
)
from paceline.export.check import check_rounding
from paceline.export.facts import facts
from paceline.export.mixing import Choose
from paceline.export.order import Order
from paceline.export.passes import Floats
from paceline.export.peaks import huge, watched
from paceline.export.quantize import BLOCKS, Quantised, quantise
from paceline.export.recipe import Recipe, follow, make_recipe
from paceline.export.sensitivity import measure, measuring_rows
from paceline.export.shrink import block_of, mixed
from paceline.export.source import Loaded
from paceline.export.tokens import token_ids
from paceline.export.torch_model import logits_of
from paceline.export.trial import TEXT

_CALIBRATED = 200_000_000
"""Parameters below which calibration is the default: there rounding loses most, and it takes seconds to minutes."""
_TINY = 1_000_000
"""Parameters below which int4 costs more than one percent of perplexity even when calibrated: docs/performance.md."""


def calibrate_model(
    name: str,
    loaded: Loaded,
    tokenizer: Tokenizer,
    order: Order,
    done: Callable[[float], None],
    warn: Callable[[str], None] | None,
) -> dict[str, float]:
    """Round the matrices of a model in place, if the order asks for it; the relative error of each."""
    parameters = facts(loaded).parameters
    small = parameters < _CALIBRATED
    if order.quant != "int4" or mixed(order) or not (small if order.calibrate is None else order.calibrate):
        return {}
    if warn is not None and parameters < _TINY:
        warn(
            f"{name} has only {parameters / 1e6:.2f} M parameters: calibrating it takes a minute or more, and int4 "
            "costs models so small 2 to 7% of perplexity; --quant int8 takes seconds and keeps nearly all of it"
        )
    text = _text(loaded, tokenizer, order, None, done)
    block = block_of(order)
    assert block is not None
    # A portable bundle keeps a tied table beside the head, which alone would be rounded.
    errors = calibrate(
        loaded, text, block, lambda n: done(min(1.0, (1 + n / parameters) / 2)), head=order.packed
    )
    for weight, error in errors.items():
        check_rounding(f"{name}: {weight}", error, 4, block, calibrated=True)
    return errors


def mix(
    loaded: Loaded, tokenizer: Tokenizer, order: Order, done: Callable[[float], None]
) -> tuple[Recipe, Choose]:
    """Measure what a model's loss depends on, and give every matrix its bits."""
    rows = None if order.calibrate else measuring_rows(facts(loaded).parameters)
    text = _text(loaded, tokenizer, order, rows, done)
    measured = measure(loaded, text, lambda share: done((1 + share) / 2))
    recipe = make_recipe(loaded, measured, order.bits)
    return recipe, follow(recipe, measured)


def exact_inputs(loaded: Loaded, tokenizer: Tokenizer) -> Choose:
    """Round every matrix to 8 bits, and say which products take their inputs unrounded, by a pass over a short text.

    They do where rounding inputs costs most: where single tokens are huge, of queries, keys and values, and in the last
    layer and the head, behind which nothing evens it out.
    """
    ids = token_ids(tokenizer, TEXT)[: facts(loaded).context]
    with watched(loaded.model) as seen:
        logits_of(loaded, ids, len(ids))
    names = {id(module): name for name, module in loaded.model.named_modules()}
    table = names[id(loaded.model.get_input_embeddings())]
    head = names[id(loaded.model.get_output_embeddings())]  # type: ignore[no-untyped-call]
    last = f"{loaded.layers[-1].name}."
    exact = {f"{head}.weight", *(name for name in seen if name.startswith(last) or huge(seen[name]))}
    for layer in loaded.layers:
        inside = [name for name in seen if name.startswith(f"{names[id(layer.attention)]}.")]
        exact |= {name for name in inside if torch.equal(seen[name][0], seen[inside[0]][0])}

    def choose(name: str, values: Floats) -> Quantised | None:
        if name == f"{table}.weight":
            return None  # one that is the head has the head's name
        return replace(quantise(values, 8, BLOCKS["int8"]), exact=name in exact)

    return choose


def _text(
    loaded: Loaded, tokenizer: Tokenizer, order: Order, rows: int | None, done: Callable[[float], None]
) -> Tensor:
    """What the order names, or what the model writes; `done` is told half of the way."""
    if order.calibration_text is None:
        ids = token_ids(tokenizer, TEXT)
        return calibration_text(loaded, ids, rows, done=lambda share: done(share / 2))
    return text_rows(
        token_ids(tokenizer, order.calibration_text), calibration_length(loaded), CALIBRATION_ROWS
    )

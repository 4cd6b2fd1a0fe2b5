"""The torch model with its own attention: what every graph of it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from paceline.export.positions import longest_text
from paceline.export.rotary import fixed_frequencies, length_dependent, own_frequencies
from paceline.export.source import Loaded
from paceline.runtime.manifest import Rope
from paceline.runtime.model.rope import reach, step_of


@contextmanager
def eager(loaded: Loaded, rope: Rope | None, length: int) -> Iterator[PreTrainedModel]:
    """Within this block the model runs its own attention code.

    Rotary frequencies that depend on the length are those that transformers has for a text of `length` tokens; beyond
    the original context dynamic ones are those of the longest text of the same step, as when it has seen one.
    """
    model = loaded.model
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if rope is None:
            yield model
        else:
            if rope.kind == "dynamic" and length > rope.original_context:
                length = reach(rope, step_of(rope, length), longest_text(loaded.config))
            modules = length_dependent(model)
            with fixed_frequencies(modules, *own_frequencies(modules, length)):
                yield model
    finally:
        model.set_attn_implementation(ours)

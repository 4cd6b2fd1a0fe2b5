"""Perplexity of a bundle on a text file, through the graph and the cache that decoding uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.options import Loading
from paceline.prompt import read_prompt
from paceline.store import chosen_bundle

if TYPE_CHECKING:
    from paceline.runtime.model.perplexity import Logits

_WINDOW = 512
_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Perplexity:
    """value, and over how many tokens, in windows of how many."""

    value: float
    tokens: int
    window: int


def measure_perplexity(loading: Loading, file: Path) -> Perplexity:
    """Windows are as long as the context, at most 512 tokens unless --context says more."""
    import numpy as np

    from paceline.memory.errors import ArgumentError
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.bundle.precision import cache_form
    from paceline.runtime.loaded import Shared
    from paceline.runtime.model.device import find_device
    from paceline.runtime.model.model import Model
    from paceline.runtime.model.perplexity import perplexity
    from paceline.runtime.model.processors import default_threads
    from paceline.runtime.places import AUTO, Places
    from paceline.runtime.profiles import as_run
    from paceline.runtime.settings import context_limit
    from paceline.runtime.tree import TokenTree

    if loading.device == AUTO:
        raise ArgumentError(
            "--perplexity tells of the arithmetic of one device: name it in place of --device auto"
        )
    where = find_device(loading.device)
    bundle = as_run(
        open_bundle(Path(chosen_bundle(loading.bundle))), Places(where, where, where), loading.profile
    )
    part, shared = bundle.manifest.target, Shared(bundle)
    window = context_limit(part, loading.context or _WINDOW)
    ids = shared.text.encode(read_prompt(None, file))
    threads = loading.threads or default_threads()
    form = cache_form(bundle.manifest, loading.cache)
    graph, _ = shared.runner(part, form, where, threads)
    model = Model(graph, part, window, widest=_WIDTH, cache=form)

    def logits_of(tokens: Sequence[int]) -> Logits:
        model.rewind(0)
        model.prepare(len(tokens))
        found = []
        for at in range(0, len(tokens), _WIDTH):
            chain = TokenTree.chain(tokens[at : at + _WIDTH])
            found.append(model.score(chain).logits.copy())
            model.commit(tuple(range(len(chain))))
        return np.concatenate(found)

    return Perplexity(perplexity(logits_of, ids, window), len(ids), window)

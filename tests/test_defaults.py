"""What a bundle says of choosing tokens holds where the user says nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundle_copy import edit, refused

from paceline.choosing import Choosing
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.generation import sampling_of
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling


def test_generation_settings_are_the_defaults_and_flags_go_on_top(folder: Path) -> None:
    wanted = {
        "eos_ids": [0],
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        "banned": [7],
        "not_before": {"0": 4},
        "no_repeat_ngram": 9,
        "phrases": [{"tokens": [1, 2], "bias": 1.5}, {"tokens": [3]}],
    }
    (path := folder / "generation.json").write_text(json.dumps(wanted))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(
        folder,
        lambda m: m["files"].update({path.name: {"bytes": path.stat().st_size, "sha256": digest}}),
    )
    generation = open_bundle(folder).generation
    assert sampling_of(generation) == Sampling(
        frequency_penalty=0.2,
        presence_penalty=0.1,
        banned=frozenset({7}),
        not_before={0: 4},
        no_repeat_ngram=9,
        phrases={(1, 2): 1.5, (3,): -np.inf},
    )
    flagged = Choosing(frequency_penalty=0.0, ban=[8], temp=0.5).sampling(generation)
    assert flagged == replace(
        sampling_of(generation), frequency_penalty=0.0, banned=frozenset({7, 8}), temperature=0.5
    )
    with load(folder, drafter="lookup", context=64) as session:
        told = [e.token for e in session.generate("The dog", max_tokens=20)]
    with load(folder, drafter="none", context=64) as session:
        assert told == [e.token for e in session.generate("The dog", max_tokens=20)]
    assert 7 not in told


def test_raw_text_goes_on_where_only_the_template_cannot_be_read(folder: Path) -> None:
    (path := folder / "chat_template.jinja").write_text("{% for m in messages %}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(
        folder,
        lambda m: m["files"].update({path.name: {"bytes": path.stat().st_size, "sha256": digest}}),
    )
    with load(folder, drafter="none", context=64) as session:
        assert [e for e in session.generate("The dog", max_tokens=2) if e.token is not None]
        refused(lambda: session.chat([{"role": "user", "content": "x"}]), "cannot be read", "run --raw")

"""A streaming draft model: a pass drafts what its rows say one by one, and its text is all that it keeps."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from draft_models import draft_graph
from law_subjects import stream_drafter
from test_manifest import manifest, refused

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.model.model import Model
from paceline.runtime.model.streams import Streams
from paceline.runtime.request import Request, Sampling

VOCAB, TEXT = 4093, [5, 17, 900, 33, 2048, 77]
FREE = DraftLimit(16, 8)


def streams(context: int = 64, chunk: int = 256) -> Streams:
    """The storyteller's draft model as if its last three ids were streams."""
    graph, part = draft_graph()
    part = msgspec.structs.replace(part, kind="streaming decoder", streams=3, product=True)
    return Streams(Model(graph, part, context, part.deepest, chunk), VOCAB)


def one_by_one(text: list[int], levels: int) -> np.ndarray:
    """The same rows, each from a cache of its own."""
    graph, part = draft_graph()
    rows = []
    for level in range(levels):
        model = Model(graph, part, 64, 1)
        rows.append(model.extend([*text, *range(VOCAB, VOCAB + level)])[:VOCAB].copy())
    return np.stack(rows)


def drafted(tested: Streams, text: list[int], levels: int) -> tuple[np.ndarray, np.ndarray]:
    assert tested.read(text)
    tokens, scores = tested.draft(levels, text[-1])
    return tokens, scores.copy()


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_a_pass_drafts_what_its_rows_say_one_by_one(levels: int) -> None:
    tested = streams()
    for text in (TEXT[:3], TEXT, [*TEXT[:4], 8, 9], [*TEXT[:4], 8]):
        tokens, scores = drafted(tested, text, levels)
        assert np.array_equal(scores, one_by_one(text, levels))
        assert np.array_equal(tokens, scores.argmax(axis=1))
        assert tested.model.tokens == text
    assert tested.model.passes_run == 4


def test_a_long_text_is_read_in_chunks_and_one_beyond_the_context_by_its_end() -> None:
    long = [int(token) for token in np.random.default_rng(0).integers(0, VOCAB, 40)]
    _, scores = drafted(streams(chunk=16), long, 4)
    assert np.allclose(scores, one_by_one(long, 4), atol=1e-4)
    short = streams(context=20)
    drafted(short, long, 4)
    assert short.model.tokens[-1] == long[-1]
    assert len(short.model.tokens) <= 17
    assert not streams(context=3).read(long)


def test_noise_chooses_and_is_told_apart_from_the_logits() -> None:
    tested = streams()
    tested.noise[:] = np.random.default_rng(1).normal(scale=30, size=tested.noise.shape)
    tokens, scores = drafted(tested, TEXT, 4)
    assert np.allclose(scores - tested.noise, one_by_one(TEXT, 4), atol=1e-4)
    assert np.array_equal(tokens, scores.argmax(axis=1))


def test_no_level_is_drafted_that_is_not_worth_it_and_siblings_stand_below_each_other() -> None:
    tested = streams()
    drafter = HeadDrafter(tested, None, "streams")
    drafter.begin(Request(Sampling(), "coupled", 0, 0, len(TEXT)))
    tree = drafter.propose(TEXT, FREE)
    assert tree.depths().max() > 1
    assert (np.bincount(tree.parents[1:]) > 1).any()
    assert drafter.propose(TEXT, DraftLimit(16, 8, node_price=1.1)).tokens.tolist() == TEXT[-1:]
    assert drafter.footprint(FREE) >= tested.model.bytes + tested.bytes
    assert stream_drafter().name == "streams"


def part(**other: Any) -> dict[str, Any]:
    """A manifest with a streaming decoder."""
    made = manifest()
    made["files"] |= dict.fromkeys(("d/f/m", "d/f/m.data"), made["files"]["t/m"])
    drafter = {**made["target"], "graph": "d/f/m", "kind": "streaming decoder", "vocab": 19, "streams": 3}
    del drafter["caches"]
    return {**made, "drafters": {"fast": {**drafter, **other}}}


def test_a_part_whose_streams_make_no_sense_is_refused(tmp_path: Any) -> None:
    refused(tmp_path, part(streams=0), "has 0 streams, and a streaming decoder alone has some")
    refused(tmp_path, part(kind="decoder"), "has 3 streams, and a streaming decoder alone has some")
    refused(tmp_path, part(vocab=18), "knows 15 tokens beside its streams where the target has 16")
    refused(tmp_path, part(taps=["hidden"]), "gives taps or has adapters")
    refused(tmp_path, part(streams=16), "streams")
    refused(tmp_path, part(tokenizer="d/f/tokenizer.json"), "for a tokenizer")
    refused(tmp_path, {**part(), "schema": 7}, "of a kind that schema 7 does not know")

"""Rotary positions scaled for longer texts: at every length the tokens are those of transformers' `generate`."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import write_checkpoint
from transformers import AutoModelForCausalLM

from paceline.export import facts, pipeline
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.loading import load
from paceline.runtime.manifest import Rope
from paceline.runtime.model.rope import frequencies, reach, step_of
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export
TRAINED, LONGEST, COUNT = 64, 256, 14
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(6)],
    "long_factor": [1.0 + 2.0 * i for i in range(6)],
    "original_max_position_embeddings": TRAINED,
}
IDS = [int(token) for token in np.random.default_rng(5).integers(3, 300, LONGEST)]


@dataclass(frozen=True)
class Variant:
    """kind: the model. switches: transformers has other frequencies beyond the trained length.

    rereads: it reads a text that crosses that length again, though it has a cache.
    """

    kind: str
    scaling: dict[str, Any]
    limit: int = TRAINED
    switches: bool = False
    rereads: bool = False


VARIANTS = {
    "phi3 longrope": Variant("phi3", LONGROPE, LONGEST, switches=True, rereads=True),
    "llama longrope": Variant("llama", LONGROPE | {"factor": 4.0}, LONGEST, switches=True),
    "dynamic": Variant("llama", {"rope_type": "dynamic", "factor": 4.0}, switches=True),
    "linear": Variant("llama", {"rope_type": "linear", "factor": 4.0}),
    "yarn": Variant(
        "qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}
    ),
    "yarn without its length": Variant("llama", {"rope_type": "yarn", "factor": 4.0}),
    "llama3": Variant(
        "llama",
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
        LONGEST,
    ),
}


@dataclass
class Pair:
    """A bundle and the checkpoint that it was made of."""

    bundle: Path
    source: Path
    variant: Variant

    def ours(self, length: int, drafter: str = "none", count: int = COUNT, **options: Any) -> list[int]:
        with load(self.bundle, drafter=drafter, threads=1, cache="fp32", **options) as session:
            events = session.generate(IDS[:length], max_tokens=count, sampling=Sampling())
            return [event.token for event in events if event.token is not None]

    def theirs(self, length: int, seen: int = 0, cached: bool = True) -> list[int]:
        """seen: the length of a text that the model has read before."""
        model = AutoModelForCausalLM.from_pretrained(self.source, attn_implementation="eager").eval()
        with torch.no_grad():
            if seen:
                model(torch.zeros(1, seen, dtype=torch.int64), use_cache=False)
            ids = torch.tensor([IDS[:length]])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=COUNT,
                do_sample=False,
                use_cache=cached,
            )
        return [int(token) for token in out[0, length:]]


def write_variant(folder: Path, variant: Variant, **changes: Any) -> Path:
    return write_checkpoint(
        folder,
        kind=variant.kind,
        rope_parameters={"rope_theta": 10000.0, **variant.scaling},
        max_position_embeddings=variant.limit,
        **{"original_max_position_embeddings": TRAINED} if variant.kind == "phi3" else {},
        initializer_range=0.25,
        tie_word_embeddings=False,
        eos_token_id=None,
        pad_token_id=0,
        **changes,
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[] if n == "phi3 longrope" else [pytest.mark.slow]) for n in VARIANTS],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("rope"), VARIANTS[request.param])


def make_pair(folder: Path, variant: Variant, **changes: Any) -> Pair:
    source = write_variant(folder / "model", variant, **changes)
    report = export_bundle(Order(str(source)), folder / "bundle")
    assert report.manifest.target.context == LONGEST
    assert (report.manifest.target.rope is not None) == variant.switches
    return Pair(folder / "bundle", source, variant)


@pytest.mark.parametrize("length", [1, 20, TRAINED - COUNT])
def test_a_text_below_the_trained_length(pair: Pair, length: int) -> None:
    assert pair.ours(length) == pair.theirs(length)


@pytest.mark.parametrize("length", [TRAINED + 1, 140, LONGEST - COUNT])
def test_a_text_beyond_the_trained_length(pair: Pair, length: int) -> None:
    seen = 1 << (length - 1).bit_length() if pair.variant.scaling["rope_type"] == "dynamic" else 0
    assert pair.ours(length) == pair.theirs(length, seen)


@pytest.mark.parametrize("length", [TRAINED - 5, TRAINED])
def test_a_text_that_outgrows_the_trained_length(pair: Pair, length: int) -> None:
    if (
        pair.variant.scaling["rope_type"] == "dynamic"
    ):  # transformers changes frequencies with every token there
        whole = [*IDS[:length], *pair.ours(length)]
        assert pair.ours(length, count=TRAINED + 1 - length) == pair.theirs(length)[: TRAINED + 1 - length]
        model = AutoModelForCausalLM.from_pretrained(pair.source, attn_implementation="eager").eval()
        with torch.no_grad():
            model(torch.zeros(1, 2 * TRAINED, dtype=torch.int64), use_cache=False)
            best = model(torch.tensor([whole]), use_cache=False).logits[0].argmax(-1)
        assert whole[TRAINED + 1 :] == best[TRAINED:-1].tolist()
    else:
        assert pair.ours(length) == pair.theirs(
            length, cached=pair.variant.rereads or not pair.variant.switches
        )


@pytest.mark.parametrize("length", [20, TRAINED - 5, 120, LONGEST - 20])
def test_drafting_changes_no_token(pair: Pair, length: int) -> None:
    plain = pair.ours(length, count=20)
    for drafter in ("lookup", "recycle", "lookup,recycle"):
        assert pair.ours(length, drafter, count=20) == plain
    assert pair.ours(length, count=20, context=length + 25) == plain  # the context decides nothing


def test_a_conversation_that_grows_is_answered_as_one_that_is_read_anew(pair: Pair) -> None:
    with load(pair.bundle, drafter="lookup", threads=1, cache="fp32") as session:
        for length in (30, 55, 70, 40, 130):
            events = session.generate(IDS[:length], max_tokens=COUNT, sampling=Sampling())
            assert [event.token for event in events if event.token is not None] == pair.ours(length)


def test_a_saved_cache_keeps_its_positions(pair: Pair, tmp_path: Path) -> None:
    for length in (30, 120):
        with load(pair.bundle, drafter="none", threads=1, cache="fp32") as session:
            list(session.generate(IDS[:length], max_tokens=4, sampling=Sampling()))
            session.save(tmp_path / "saved")
        with load(pair.bundle, drafter="none", threads=1, cache="fp32") as session:
            assert session.restore(tmp_path / "saved") >= length
            events = session.generate(IDS[:length], max_tokens=COUNT, sampling=Sampling())
            assert [event.token for event in events if event.token is not None] == pair.ours(length)
            assert session.stats.reused_tokens == length - 1


@pytest.mark.slow
def test_random_draws_do_not_repeat_where_the_text_is_read_again(tmp_path: Path) -> None:
    """So hot that the draws alone decide: a generator that began anew would tell the same tokens again."""
    pair = make_pair(tmp_path, VARIANTS["phi3 longrope"])
    hot = Sampling(temperature=100.0)
    first = TRAINED + 1 - 7  # seven tokens fit before the step
    for accept, drafters in (("coupled", ("none", "lookup")), ("rejection", ("none",))):
        told = []
        for drafter in drafters:
            with load(pair.bundle, drafter=drafter, threads=1, cache="fp32") as session:
                events = session.generate(IDS[:first], max_tokens=14, sampling=hot, seed=3, accept=accept)
                told.append([event.token for event in events if event.token is not None])
        assert told[-1] == told[0]
        same = [a == b for a, b in zip(told[0][:7], told[0][7:], strict=True)]
        assert sum(same) < 2


@pytest.mark.slow
def test_a_sliding_window_is_read_at_the_longest_text(tmp_path: Path) -> None:
    """A window between the configured length and the longest text masks tokens only beyond the former."""
    variant = Variant("mistral", {"rope_type": "linear", "factor": 4.0})
    pair = make_pair(tmp_path, variant, sliding_window=96)
    for length in (40, 150, LONGEST - COUNT):
        assert pair.ours(length) == pair.theirs(length)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["short", "long", "factor"])
def test_the_trial_sees_frequencies_that_are_not_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    variant = VARIANTS["dynamic" if field == "factor" else "llama longrope"]
    source = write_variant(tmp_path / "model", variant)
    honest = facts.facts

    def wrong(loaded: Any) -> facts.Facts:
        known = honest(loaded)
        assert known.rope is not None
        twisted = 9.0 if field == "factor" else [2 * value for value in getattr(known.rope, field)]
        return replace(known, rope=Rope(**{**_fields(known.rope), field: twisted}))

    monkeypatch.setattr(pipeline, "facts", wrong)
    with pytest.raises(ExportError, match="disagrees with torch"):
        export_bundle(Order(str(source)), tmp_path / "bundle")


def _fields(rope: Rope) -> dict[str, Any]:
    return {name: getattr(rope, name) for name in rope.__struct_fields__}


@given(st.integers(1, 500), st.integers(1, 9000), st.sampled_from(["dynamic", "longrope"]))
def test_a_step_ends_where_the_next_begins(original: int, length: int, kind: Any) -> None:
    rope = Rope(kind=kind, original_context=original, dim=4, factor=3.0, short=[1.0, 0.5], long=[0.5, 0.1])
    longest = 10_000
    step = step_of(rope, length)
    end = reach(rope, step, longest)
    assert length <= end
    assert step_of(rope, end) == step
    assert end == longest or step_of(rope, end + 1) == step + 1
    values, scale = frequencies(rope, end)
    assert values.shape == (2,)
    assert scale == 1.0

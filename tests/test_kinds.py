"""The names of drafters, and what one row says of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from law_subjects import VOCAB, draft_model

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.kinds import (
    KINDS,
    Extent,
    Kind,
    Supplies,
    asked_of,
    offered,
    parse,
    single_words,
)
from paceline.runtime.drafters.store import MOST_BYTES, STORE_BYTES, SuffixStore
from paceline.runtime.drafters.words import PLAIN, WITH_MODEL, WITHOUT_MODEL, WORDS
from paceline.runtime.manifest import RESERVED_NAMES, Part
from paceline.runtime.options import Options, flags_of

PARTS: dict[str, Part] = dict(open_bundle(embedded_bundle()).manifest.drafters)
SMALL = PARTS["small"]
HEADED = {
    **PARTS,
    "toy": msgspec.structs.replace(SMALL, kind="head", reads=["hidden"], features=SMALL.hidden),
}


def made(kind: Kind, extent: Extent, store: SuffixStore | None = None) -> object:
    return kind.make(kind.word, Supplies(extent, draft_model() if kind.runs else None, store))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.word)
@pytest.mark.parametrize("context", [1, 64, 512, 4096])
def test_planned_bytes_are_what_the_drafter_says_it_holds(kind: Kind, context: int) -> None:
    extent = Extent(VOCAB + 40, context)
    drafter = kind.make(kind.word, Supplies(extent, draft_model() if kind.runs else None))
    beside = drafter.footprint(DraftLimit(16, 8))
    if kind.runs:
        model = draft_model()
        beside -= model.cache.bytes + model.logit_bytes
    assert kind.bytes(extent) == beside


def test_a_store_never_takes_more_than_was_planned_for_it(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path / "store", "table")
    (suffix,) = (kind for kind in KINDS if kind.word == "suffix")
    extent = Extent(VOCAB, 64, STORE_BYTES)
    drafter = suffix.make("suffix", Supplies(extent, store=store))
    for first in range(0, MOST_BYTES // 4, 8000):
        store.remember([first + at for at in range(8000)])
        store.contexts()
    assert 0 < drafter.footprint(DraftLimit(16, 8)) <= suffix.bytes(extent)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.word)
def test_a_drafter_is_called_by_its_word_which_no_draft_model_may_have(kind: Kind) -> None:
    assert getattr(made(kind, Extent(VOCAB, 64)), "name") == kind.word  # noqa: B009
    assert kind.word in RESERVED_NAMES
    assert parse(kind.word, PARTS).words[0].kind is kind


@pytest.mark.parametrize(
    ("text", "said", "models", "depth"),
    [
        ("chain", "chain", ("small",), 8),
        ("small", "small", ("small",), 8),
        ("tree:small", "tree:small", ("small",), 5),
        (" lookup , recycle ", "lookup,recycle", (), 16),
        ("chain,lookup", "chain,lookup", ("small",), 16),
        ("chain:a,tree:b", "chain:a,tree:b", ("a", "b"), 8),
        ("none", "none", (), 0),
        ("auto", "auto", (), 16),
    ],
)
def test_a_name_is_understood_once(text: str, said: str, models: tuple[str, ...], depth: int) -> None:
    parts = {**PARTS, "a": SMALL, "b": SMALL}
    name = parse(text, parts)
    assert (name.text, name.models, name.depth) == (said, models, depth)
    assert (name.auto, name.plain) == (said == "auto", said == "none")


@pytest.mark.parametrize(
    ("text", "parts", "why"),
    [
        ("chan", PARTS, r"unknown drafter 'chan': did you mean chain\? this bundle has none,"),
        ("smal", PARTS, r"did you mean small\?"),
        (
            "toy",
            HEADED,
            r"drafter 'toy' is a head, which .* cannot run: this bundle has none, .*, small, auto \(",
        ),
        ("toi", HEADED, r"this bundle has none, chain, tree, lookup, suffix, recycle, small, auto \("),
        ("fast", PARTS, r"unknown drafter 'fast': this bundle has none, chain, tree, .*, small, auto"),
        ("lookup:small", PARTS, "unknown drafter 'lookup:small'"),
        ("none:small", PARTS, "unknown drafter 'none:small'"),
        ("chain:big", PARTS, r"no draft model 'big' for chain: it has small"),
        ("chain", {}, "needs a draft model and this bundle has none"),
        ("lookup,lookup", PARTS, "must differ"),
        ("lookup,auto", PARTS, "stand alone"),
        ("", PARTS, "unknown drafter ''"),
        ("lookup,", PARTS, "a name is missing after the comma"),
        ("chain, ", PARTS, "a name is missing after the comma"),
        ("chain,,lookup", PARTS, "a name is missing after the comma"),
        (",chain", PARTS, "a name is missing before the comma"),
        ("chain:", PARTS, "a name is missing after the colon"),
        ("small:", PARTS, "a name is missing after the colon"),
        ("lookup:", PARTS, "a name is missing after the colon"),
        ("none:", PARTS, "a name is missing after the colon"),
        ("chain,chain:small", PARTS, "must differ"),
        ("small,chain", PARTS, "must differ"),
    ],
)
def test_a_name_that_means_nothing_is_refused(text: str, parts: dict[str, Part], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text, parts)


def test_what_auto_asks_for_is_what_its_arms_need() -> None:
    parts, extent = {"a": SMALL, "b": SMALL}, Extent(100, 512)
    arms = offered(tuple(parts), parts)
    words = {word.text: word.kind for arm in arms for word in arm.words}
    asked = asked_of(parse("auto", parts), parts, extent, every=True)
    assert asked.models == ("a", "b")
    assert asked.tables == sum(kind.bytes(extent) for kind in words.values())
    assert asked_of(parse("auto", parts), parts, extent).models == ("a",)
    assert offered((), {}, tables=False) == []


FREE = [kind for kind in KINDS if kind.free]


def _holding_nothing(patch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(kind, bytes=lambda extent: 0) for kind in KINDS)
    patch.setattr("paceline.runtime.drafters.kinds.KINDS", rows)


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.word)
@pytest.mark.parametrize("nothing", [False, True])
def test_a_named_drafter_drafts_under_a_budget_whatever_it_holds(
    kind: Kind, nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if nothing:
        _holding_nothing(monkeypatch)
    with load(embedded_bundle(), drafter=kind.word, memory="1GB") as session:
        assert session.plan is not None
        assert session.plan.choice.room.tables
        assert session.plan.choice.room.nodes > 0
        assert session.plan.tables == (
            0 if nothing else kind.bytes(Extent(session.bundle.manifest.target.vocab, session.context))
        )
        session.generate("One two three. " * 6, max_tokens=32).read()
        assert session._drafting.control.limit(8).nodes > 0


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.word)
@pytest.mark.parametrize("planned", ["none", "chain"])
def test_a_plan_without_drafters_that_need_no_model_has_no_room_for_one_that_holds_nothing(
    kind: Kind, planned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _holding_nothing(monkeypatch)
    with load(embedded_bundle(), drafter=planned, memory="1GB") as session:
        with pytest.raises(ValueError, match="no room for it"):
            session.set_drafter(kind.word)
        session.set_drafter("none")


def test_every_word_is_where_users_and_exporters_read_it() -> None:
    assert [kind.word for kind in KINDS] == [PLAIN, *WITH_MODEL, *WITHOUT_MODEL]
    assert [kind.word for kind in KINDS if kind.runs] == list(WITH_MODEL)
    assert set(WORDS) == {*single_words(PARTS), "auto"} <= RESERVED_NAMES
    told = flags_of(Options)["drafter"].help
    root = Path(__file__).parents[1]
    pages = [(root / page).read_text(encoding="utf-8") for page in ("README.md", "docs/drafters.md")]
    with pytest.raises(ValueError, match="needs a draft model") as refused:
        parse("chain", {})
    for kind in FREE:
        assert kind.word in told
        assert kind.word in str(refused.value)
        assert all(f"| `{kind.word}` |" in page for page in pages)


def test_a_bundle_without_draft_models_has_the_drafters_that_need_none() -> None:
    assert single_words({}) == [kind.word for kind in KINDS if not kind.runs]
    assert single_words(PARTS) == [kind.word for kind in KINDS]

"""The names of drafters, and what one row says of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from draft_models import VOCAB, draft_model
from law_subjects import head_drafter, hidden_states, stream_drafter

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.control.costs import Points
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.drafters.kinds import KINDS, Extent, Kind, Supplies
from paceline.runtime.drafters.names import asked_of, offered, parse, single_words, stays_behind
from paceline.runtime.drafters.prices import arm_of
from paceline.runtime.drafters.store import MOST_BYTES, STORE_BYTES, SuffixStore
from paceline.runtime.drafters.words import PLAIN, WITH_HEAD, WITH_MODEL, WITH_TARGET, WITHOUT_MODEL, WORDS
from paceline.runtime.manifest import RESERVED_NAMES, Part
from paceline.runtime.options import Options, flags_of
from paceline.unused import unused

PARTS: dict[str, Part] = dict(open_bundle(embedded_bundle()).manifest.drafters)
SMALL = PARTS["small"]
HEAD = msgspec.structs.replace(
    SMALL,
    kind="head",
    reads=["hidden"],
    features=SMALL.hidden,
    drafts={n: f"drafters/toy/draft.{n}.onnx" for n in (1, 2, 6)},
)
SKIP = msgspec.structs.replace(SMALL, kind="skip", without=["mlp.0"])
EXIT = msgspec.structs.replace(
    SMALL,
    kind="exit",
    reads=["hidden.0"],
    features=SMALL.hidden,
    exits={0: "target/early.0.onnx"},
    costs={0: 0.4},
)
STREAMING = msgspec.structs.replace(SMALL, kind="streaming decoder", streams=3)
HEADED, UNKNOWN = (
    {**PARTS, "toy": HEAD, "thin": SKIP, "roo": EXIT, "fast": STREAMING},
    {**PARTS, "toy": msgspec.structs.replace(SMALL, kind="feature decoder")},
)


def supplies(kind: Kind, extent: Extent) -> Supplies:
    if kind.runs == "streaming decoder":
        return Supplies(extent, head=stream_drafter().head)
    if kind.runs == "head":
        pytest.importorskip("onnx")
        return Supplies(extent, head=head_drafter(attends=True).head, features=hidden_states())
    if kind.runs == "exit":
        pytest.importorskip("onnx")
        from small_exits import beside_a_target as leaving

        target, exits = leaving("roo", small=True)
        return Supplies(extent, exits=exits, features=target.keep_taps(exits.reader.part.reads))
    if kind.runs == "skip":
        pytest.importorskip("onnx")
        from small_skips import beside_a_target

        return Supplies(extent, skipping=beside_a_target()[1])
    return Supplies(extent, draft_model() if kind.runs else None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.word)
@pytest.mark.parametrize("context", [1, 64, 512, 4096])
def test_planned_bytes_are_what_the_drafter_says_it_holds(kind: Kind, context: int) -> None:
    extent = Extent(VOCAB + 40, context)
    given = supplies(kind, extent)
    beside = kind.make(kind.word, given).footprint(DraftLimit(16, 8))
    model = given.model if given.head is None else given.head.model
    if model is not None:
        beside -= model.cache.bytes + model.logit_bytes
    if given.head is not None:
        beside -= given.head.bytes
    for own in (given.skipping, given.exits):
        beside -= 0 if own is None else own.bytes
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
    assert kind.make(kind.word, supplies(kind, Extent(VOCAB, 64))).name == kind.word
    assert kind.word in RESERVED_NAMES
    assert parse(kind.word, HEADED).words[0].kind is kind


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
        ("head", "head", ("toy",), 6),
        ("toy", "toy", ("toy",), 6),
        ("fast", "fast", ("fast",), 4),
        ("streams,lookup", "streams,lookup", ("fast",), 16),
        ("head:toy,recycle", "head:toy,recycle", ("toy",), 6),
        ("chain:a,head", "chain:a,head", ("a", "toy"), 8),
    ],
)
def test_a_name_is_understood_once(text: str, said: str, models: tuple[str, ...], depth: int) -> None:
    parts = {**HEADED, "a": SMALL, "b": SMALL}
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
            UNKNOWN,
            r"drafter 'toy' is of kind feature decoder, which .* cannot run: this bundle has none, .*, small, auto \(",
        ),
        ("toi", UNKNOWN, r"this bundle has none, chain, tree, lookup, suffix, recycle, small, auto \("),
        (
            "toi",
            HEADED,
            r"did you mean toy\? this bundle has none, chain, tree, streams, head, .*, toy, thin, roo, fast, auto",
        ),
        (
            "head",
            PARTS,
            r"head needs a draft head and .*: use one of chain, tree, lookup, .*`paceline export --head NAME=DIR`",
        ),
        (
            "streams",
            PARTS,
            r"streams needs a draft model with streams and .*: use one of chain, .*`paceline export --drafter NAME=DIR",
        ),
        ("head:small", HEADED, r"no draft head 'small' for head: it has toy"),
        ("chain:toy", HEADED, r"no draft model 'toy' for chain: it has small"),
        ("head,toy", HEADED, "must differ"),
        ("quick", PARTS, r"unknown drafter 'quick': this bundle has none, chain, tree, .*, small, auto"),
        ("lookup:small", PARTS, "unknown drafter 'lookup:small'"),
        ("none:small", PARTS, "unknown drafter 'none:small'"),
        ("chain:big", PARTS, r"no draft model 'big' for chain: it has small"),
        ("chain", {}, "needs a draft model and this bundle has none"),
        (
            "chain",
            {"toy": HEAD},
            "this bundle has none that it can run: use one of head, lookup, suffix, recycle,",
        ),
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


def test_auto_offers_heads_alone_and_fused_and_plans_the_first_one_where_there_is_room_for_one() -> None:
    extent = Extent(100, 512)
    every = [arm.text for arm in offered(tuple(HEADED), HEADED)]
    assert (every[:3], every[-1]) == (["head", "streams", "chain"], "skip")
    assert asked_of(parse("auto", {"thin": SKIP}), {"thin": SKIP}, extent).models == ("thin",)
    assert {"head,lookup", "streams,lookup", "chain,lookup", "tree", "lookup,recycle"} <= set(every)
    assert "head:toy,lookup" in [arm.text for arm in offered(("toy",), {**HEADED, "tall": HEAD})]
    auto = parse("auto", HEADED)
    assert asked_of(auto, HEADED, extent).models == ("toy",)
    lone = asked_of(parse("exit", HEADED), HEADED, extent)
    assert (lone.models, lone.taps) == (("roo",), ("hidden.0",))
    as_it_is = {"roo": msgspec.structs.replace(EXIT, layers=0)}
    assert asked_of(parse("exit", as_it_is), as_it_is, extent).taps == ()
    assert asked_of(auto, HEADED, extent).taps == ("hidden",)
    assert asked_of(auto, HEADED, extent, every=True).models == ("toy", "fast", "small", "roo", "thin")
    assert asked_of(parse("chain,lookup", HEADED), HEADED, extent).taps == ()


def test_a_level_costs_what_the_deepest_graph_takes_longer() -> None:
    curve = CostCurve(Points(16, ((1, 0.002), (3, 0.004), (5, 0.006)), ((1, 0.0),)), 5)
    arm = arm_of(parse("head,lookup", HEADED), 5, lambda part: curve)
    alone = arm_of(parse("head", HEADED), 5, lambda part: curve)
    assert (arm.part, arm.members) == ("toy", ("head", "lookup"))
    assert alone.step == pytest.approx(0.001)
    assert (arm.fixed, alone.fixed) == (0.05, 0.05)
    assert [
        arm_of(parse(text, HEADED), 5, lambda part: curve).fixed
        for text in ("chain", "chain,head", "exit", "skip")
    ] == [
        0.3,
        0.3,
        0.3,
        0.6,
    ]
    assert alone.flat == pytest.approx(0.001, abs=2e-4)
    assert alone.flat < arm.flat < alone.flat + 1e-4


FREE = [kind for kind in KINDS if kind.free]


def _holding_nothing(patch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(kind, bytes=lambda extent: 0) for kind in KINDS)
    patch.setattr("paceline.runtime.drafters.names.KINDS", rows)


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.word)
@pytest.mark.parametrize("nothing", [False, True])
def test_a_named_drafter_drafts_under_a_budget_whatever_it_holds(
    kind: Kind, nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if nothing:
        _holding_nothing(monkeypatch)
    with load(embedded_bundle(), drafter=kind.word, memory="2GB") as session:
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
    with load(embedded_bundle(), drafter=planned, memory="2GB") as session:
        with pytest.raises(ValueError, match="no room for it"):
            session.set_drafter(kind.word)
        session.set_drafter("none")


def test_every_word_is_where_users_and_exporters_read_it() -> None:
    assert [kind.word for kind in KINDS] == [
        PLAIN,
        *WITH_MODEL,
        *WITH_HEAD,
        *WITH_TARGET,
        *WITHOUT_MODEL,
    ]
    assert [kind.word for kind in KINDS if kind.runs] == [*WITH_MODEL, *WITH_HEAD, *WITH_TARGET]
    assert set(WORDS) == {*single_words(HEADED), "auto"} <= RESERVED_NAMES
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
    assert single_words(HEADED) == [kind.word for kind in KINDS]
    assert single_words(PARTS) == [kind.word for kind in KINDS if kind.runs in (None, "decoder")]


@pytest.mark.parametrize(
    ("drafter", "why"),
    [
        ("skip", "drafts with the model's own layers, which its pass is using"),
        ("exit,lookup", "drafts with the model's own layers, which its pass is using"),
        ("head", "drafts from the state that the model's pass ends with, and before that from nothing"),
        ("lookup", "runs nothing that could go on beside the model"),
        ("none", "runs nothing that could go on beside the model"),
        ("fast", None),
        ("skip,chain", None),
        ("auto", None),
    ],
)
def test_who_stays_behind_the_target_is_told_why(drafter: str, why: str | None) -> None:
    """The head's levels know nothing of each other."""
    parts = {**HEADED, "toy": msgspec.structs.replace(HEAD, product=True)}
    assert stays_behind(drafter, parts) == why
    assert stays_behind("head", HEADED) is None
    chosen = Options(embedded_bundle(), drafter=drafter, mirror="on")
    told = [found.flag for found in unused(chosen, [drafter], parts, False) if found.name == "mirror"]
    assert told == ([f"--mirror on takes a thread and is not used: {drafter} {why}"] if why else [])


def test_reasons_of_several_drafters_are_told_once_each() -> None:
    chosen = Options(embedded_bundle(), drafter="none", mirror="on")
    [told] = [f.flag for f in unused(chosen, ["none", "skip", "lookup"], HEADED, False) if f.name == "mirror"]
    assert told.endswith(
        "not used: none, lookup runs nothing that could go on beside the model; skip drafts with the model's own "
        "layers, which its pass is using"
    )

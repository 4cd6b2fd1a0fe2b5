"""Drafting with the target's own layers: graphs without some blocks, what is measured of them, and sessions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
import onnx_ir as ir
from bundle_copy import edit
from command_line import call
from planned_memory import taken
from small_skips import WITHOUT, add_skip, beside_a_target, skip_bundle

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.export.errors import ExportError
from paceline.export.skips.blocks import blocks_of, leave_out
from paceline.export.skips.search import speed
from paceline.export.skips.yardstick import Yardstick, agreement
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError, read_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.part import Prices
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

PROMPT = "Once upon a time, there was a little fox who"


@pytest.fixture(scope="module")
def model() -> ir.Model:
    bundle = skip_bundle()
    return ir.load(bundle.path(bundle.manifest.target.graph))


def test_each_layer_has_two_blocks_whose_weights_are_its_own(model: ir.Model) -> None:
    part = skip_bundle().manifest.target
    blocks = blocks_of(model, part.layers)
    assert [block.name for block in blocks] == [
        f"{what}.{layer}" for layer in range(part.layers) for what in ("attention", "mlp")
    ]
    named = [{name for name in part.weights if f"layers.{layer}." in name} for layer in range(part.layers)]
    for layer, names in enumerate(named):
        own = sum(part.weights[name].bytes for name in names)
        assert (
            own <= blocks[2 * layer].bytes + blocks[2 * layer + 1].bytes <= own + 2**17
        )  # small ones beside


def test_what_is_left_out_is_not_run_and_all_else_stays(model: ir.Model) -> None:
    layers = skip_bundle().manifest.target.layers
    twin = leave_out(model, WITHOUT, layers)
    left = [n for n in model.graph.outputs if n.name not in {v.name for v in twin.graph.outputs}]
    assert {value.name for value in left} == {"new_k.5", "new_v.5", "new_k.6", "new_v.6"}
    assert [v.name for v in twin.graph.inputs] == [v.name for v in model.graph.inputs]
    assert list(twin.graph.initializers) == list(model.graph.initializers)
    attentions = [node for node in twin.graph if "Attention" in node.op_type]
    assert len(attentions) == layers - 2
    assert len(list(leave_out(model, (), layers).graph)) == len(list(model.graph))


def test_a_graph_without_a_stream_of_its_own_is_refused(model: ir.Model) -> None:
    with pytest.raises(ExportError, match=r"layer 8 .* can be left out"):
        blocks_of(model, 9)


def test_it_is_nearly_the_same_model() -> None:
    target, skipping = beside_a_target()
    tokens = load_tokens(PROMPT)
    target.prefill(tokens[:-1])
    drafted = skipping.read(tokens).copy()
    whole = target.score(TokenTree.root(tokens[-1])).logits[0]
    assert not np.allclose(drafted, whole)
    assert np.corrcoef(drafted, whole)[0, 1] > 0.7


def load_tokens(text: str) -> list[int]:
    with load(embedded_bundle(), drafter="none", threads=1) as session:
        return session.encode(text)


def test_its_weights_are_the_targets_own_memory() -> None:
    target, skipping = beside_a_target()
    own, other = target._graph.weights, skipping._graph.weights
    assert own is other
    assert skipping.bytes < 2**17
    assert skipping.part.weights == target.part.weights


def test_its_rows_stand_where_the_target_reads_nothing() -> None:
    target, skipping = beside_a_target(form="int8")
    tokens = load_tokens(PROMPT)
    target.prefill(tokens[:-1])
    held = target.cache.stack[:, :, : len(tokens) - 1].copy()
    alone = target.score(TokenTree.root(tokens[-1])).logits.copy()
    row, text = skipping.read(tokens), list(tokens)
    for _ in range(4):
        text.append(int(row.argmax()))
        row = skipping.extend(text[-1:])
    assert np.array_equal(held, target.cache.stack[:, :, : len(tokens) - 1])
    assert np.array_equal(alone, target.score(TokenTree.root(tokens[-1])).logits)
    assert np.array_equal(row, again(skipping, tokens, text))
    with pytest.raises(RuntimeError, match="the target holds"):
        skipping.read(tokens[:-1])


def again(skipping: Any, tokens: list[int], text: list[int]) -> np.ndarray:
    row = skipping.read(tokens)
    for token in text[len(tokens) :]:
        row = skipping.extend([token])
    return row


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("form", "nodes"),
    [
        ("fp16", 4),
        *(pytest.param(form, n, marks=SLOW) for form in ("fp32", "int8") for n in (1, 4, 16)),
    ],
)
def test_answers_are_those_of_plain_decoding(form: str, nodes: int) -> None:
    folder = skip_bundle().folder
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=20)):
        told = []
        for drafter in ("skip", "none"):
            with load(folder, drafter=drafter, threads=1, cache=form, max_nodes=nodes) as session:
                told.append(session.generate(PROMPT, max_tokens=40, sampling=sampling, seed=3).read().tokens)
                if drafter == "skip":
                    assert session.stats.drafted > 0
        assert told[0] == told[1]


def test_with_lookup_and_after_the_context_slid_too() -> None:
    folder = skip_bundle().folder
    told = []
    for drafter in ("skip,lookup", "swift", "none"):
        with load(folder, drafter=drafter, threads=1, context=96, overflow="slide") as session:
            told.append(session.generate(PROMPT, max_tokens=200).read().tokens)
    assert told[0] == told[1] == told[2]
    assert len(told[0]) > 96


def test_a_set_is_measured_as_decoding_goes() -> None:
    """Every place at once, in one pass a level, is what drafting there one after another is."""
    bundle = skip_bundle()
    yardstick = Yardstick(bundle, 1)
    piece = yardstick.answer(load_tokens(PROMPT), 24)
    assert piece is not None
    part = bundle.manifest.drafters["swift"]
    graph = yardstick.open(part, bundle.read_graph(part.graph_for(yardstick.form)))
    [right] = yardstick.right(part, graph, [piece], 3)
    target, skipping = beside_a_target(form=yardstick.form)
    tokens = piece.tokens.tolist()
    for flags, place in zip(right, piece.places.tolist(), strict=True):
        target.keep_common(tokens[:place])
        target.prefill(tokens[target.length : place])
        row = skipping.read(tokens[: place + 1])
        for level in range(3):
            drafted, at = int(row.argmax()), place + 1 + level
            assert flags[level] == (at < len(tokens) and drafted == tokens[at])
            row = skipping.extend([drafted])
    assert 0.3 < agreement([right]) < 1


@pytest.mark.parametrize("recorded", [0.5, 0.99])
def test_auto_does_not_try_what_was_measured_not_to_pay(tmp_path: Path, recorded: float) -> None:
    from paceline.runtime.control.controller import Controller

    folder = copied(tmp_path)
    edit(folder, lambda made: made["drafters"]["swift"].update(accepted=[recorded]))
    with load(folder, threads=1) as session:
        control = session._drafting.control
        assert isinstance(control, Controller)
        assert {arm.name: arm.hope for arm in control._arms}["skip"] == min(0.95, recorded + 0.15)


def test_a_plan_goes_by_what_was_accepted_as_a_part_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))  # by measured costs it may never pay
    folder, gains = copied(tmp_path / "copy"), list[float]()
    for shares in ([0.01, 0.0], [1.0, 1.0, 1.0, 1.0]):
        edit(folder, lambda made, shares=shares: made["drafters"]["swift"].update(accepted=shares))
        gains.append(call("plan", "-b", folder, "--drafter", "skip", "--json").json()["predicted_gain"])
    assert gains[0] < gains[1]


def test_a_plan_goes_by_the_prices_of_the_search_until_others_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It predicts what the search did, less what drafting takes besides."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    folder = copied(tmp_path / "copy")
    edit(folder, lambda made: made["drafters"]["swift"].update(accepted=[0.6] * 4))
    for draft, row in ((0.2, 0.05), (0.3, 0.1)):
        edit(
            folder,
            lambda made, d=draft, r=row: made["drafters"]["swift"].update(prices={"draft": d, "row": r}),
        )
        ask = ["plan", "-b", folder, "--drafter", "skip"]
        told, found = call(*ask, "--json").json(), speed([0.6] * 4, draft, row)
        assert told["priced_by_search"] == ["swift"]
        assert told["predicted_gain"] == pytest.approx(found[1], rel=0.05)
        assert "what its search measured, maybe on another machine" in " ".join(call(*ask).out.split())


def copied(folder: Path) -> Path:
    """A copy to be spoilt, whose weights are links."""

    def place(source: str, to: str) -> None:
        (os.link if source.endswith(".data") else shutil.copy2)(source, to)

    return Path(shutil.copytree(skip_bundle().folder, folder / "bundle", copy_function=place))


def change(folder: Path, **fields: object) -> None:
    edit(folder, lambda made: made["drafters"]["swift"].update(fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"without": []}, "leaves out nothing"),
        ({"without": ["mlp.8"]}, "what the target does not have"),
        ({"without": ["norm.1"]}, "without"),
        ({"layers": 7}, "other layers than the target"),
        ({"weights": {}}, "other weights than the target"),
        ({"taps": ["hidden"]}, "gives taps"),
        ({"graph": "target/model.onnx"}, "a graph of the target"),
        ({"graph": "drafters/small/model.onnx", "weights": {}, "caches": {}}, "beside the target's weights"),
        ({"kind": "decoder", "weights": {}}, "leaves out blocks or has prices, as only a skip may"),
        ({"prices": {"draft": -1, "row": 0.1}}, "draft"),
        ({"prices": {"draft": 0.5}}, "row"),
        ({"without": ["mlp.3", "attention.5", "attention.6"]}, None),
        ({"without": ["attention.3"]}, "new_k.5"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, fields: dict[str, object], words: str | None
) -> None:
    folder = copied(tmp_path)
    change(folder, **fields)
    if words is None:  # which blocks of feed-forward a graph lacks is for people alone
        load(folder, drafter="skip", threads=1).close()
        return
    with pytest.raises(BundleError, match=words):
        load(folder, drafter="skip", threads=1)


def test_an_older_schema_has_no_skips(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    edit(folder, lambda made: made.update(schema=5))
    with pytest.raises(BundleError, match="of a kind that schema 5 does not know"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--skip", "swift"], "not NAME=FILE"),
        (["--skip", "swift=nowhere.txt"], "no file at nowhere.txt"),
        (["--skip", "Swift=TEXT"], "is no name"),
        (["--skip", "small=TEXT"], "has a drafter 'small' already"),
        (["--skip", "swift=TEXT", "--skip-share", "0"], "a share of 0"),
        (["--skip", "swift=TEXT", "--skip-share", "0.9"], "ask for a smaller --skip-share"),
        (["--skip", "swift=TEXT", "--quant", "int4"], "--quant cannot change a bundle"),
        (
            ["--skip", "swift=TEXT", "--head", "a=b"],
            "--head is added to a finished bundle in an export of its own",
        ),
        (["--skip", "swift=TEXT", "--taps", "hidden"], "--taps is added to a finished bundle"),
        (["--skip", "swift=TEXT", "--drafter", "a=b"], "--drafter is added to a finished bundle"),
        (["--drafter", "b=c", "--head", "a=b"], "--head is added to a finished bundle"),
        (["--skip", "thin.fp16=TEXT"], "ends as a graph for a cache of fp16 does"),
        (["--skip", "swift=SHORT"], "give a longer text"),
        (["--head", "a=b", "--skip-share", "0.3"], "are for --skip NAME=FILE"),
        (["--drafter", "a=b", "--skip-trials", "9"], "are for --skip NAME=FILE"),
        (["--taps", "hidden", "--skip-share", "0.3"], "are for --skip NAME=FILE"),
        (["--skip-share", "0.3"], "with a finished bundle in place of MODEL"),
        (["--drafter", "a=b", "--head-quant", "int8"], "--head-quant is for heads"),
        (["--skip", "swift=TEXT", "--head-quant", "int8"], "--head-quant is for heads"),
    ],
)
def test_orders_that_cannot_be_are_refused_in_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    (tmp_path / "text").write_text("The fox and the hen went to the river. " * 40)
    (tmp_path / "short").write_text("a")
    named = {"TEXT": str(tmp_path / "text"), "SHORT": str(tmp_path / "short")}
    given = [next((f.replace(a, b) for a, b in named.items() if f.endswith(a)), f) for f in flags]
    done = call("export", embedded_bundle(), tmp_path / "out", *given, "-q")
    assert done.code != 0
    assert words in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_makes_a_bundle_that_drafts_with_itself(tmp_path: Path) -> None:
    text = tmp_path / "stories.txt"
    text.write_text("Once upon a time there was a dog. He liked to play in the park with his friends. " * 40)
    out = tmp_path / "out"
    told = call(
        "export", embedded_bundle(), out, "--skip", f"swift={text}", "--skip-trials", "40", "-q", "--json"
    )
    made = told.json()["skips"]["swift"]
    assert 0.38 < made["share"] < 0.6
    assert made["acceptance"][0] > 0.3
    manifest = open_bundle(out).manifest
    assert manifest.acceptance["swift"] == pytest.approx(made["round_tokens"], abs=1e-4)
    assert manifest.drafters["swift"].weights == manifest.target.weights
    assert manifest.drafters["swift"].prices == Prices(draft=made["pass"], row=made["row"])
    assert [path.name for path in out.rglob("*.data")].count(
        "model.onnx.data"
    ) == 2  # the target's, the draft model's
    shown = call("inspect", out).out
    assert "over the target's weights" in shown
    assert "of a skip, until then, by its search" in " ".join(shown.split())
    again = call("export", out, tmp_path / "more", "--skip", f"swift={text}")
    assert "has a drafter 'swift' already" in again.err


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("kind", ["llama", "olmo2", "granite"])
def test_a_graph_without_blocks_is_torchs_model_without_them(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from small_checkpoints import write_checkpoint

    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle

    source = write_checkpoint(tmp_path / "source", kind=kind, num_hidden_layers=4)
    folder = export_bundle(Order(str(source)), tmp_path / "bundle").folder
    part = add_skip(folder, ["attention.1", "mlp.1", "mlp.2"])
    tokens = [7, 3, 100, 41, 260, 9, 9, 15]
    graph = Graph(folder / part.graph, find_device("cpu"), 1, part)
    model = Model(graph, part, 64, 8)
    model.prefill(tokens[:-1])
    found = model.extend(tokens[-1:])

    def nothing(module: Any, given: Any, made: Any) -> Any:
        return (torch.zeros_like(made[0]), *made[1:]) if isinstance(made, tuple) else torch.zeros_like(made)

    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    for block in part.without:
        what, layer = block.split(".")
        held = whole.model.layers[int(layer)]
        (held.self_attn if what == "attention" else held.mlp).register_forward_hook(nothing)
    with torch.no_grad():
        meant = whole(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.allclose(found, meant, atol=1e-3 * np.abs(meant).max())
    assert not np.allclose(found, meant + 0.1)


def test_a_plan_counts_it_without_weights_as_the_process_does() -> None:
    bundle, peaks, planned = skip_bundle(), dict[str, int](), dict[str, int]()
    for drafter in ("none", "skip", "none", "skip"):  # the first loads measure, the others know
        peaks[drafter], planned[drafter] = taken(bundle.folder, drafter)
    weights = bundle.manifest.files[bundle.manifest.target.data].bytes
    for drafter, peak in peaks.items():
        assert planned[drafter] == pytest.approx(peak, rel=0.05)
    assert peaks["skip"] - peaks["none"] < weights / 3
    assert planned["skip"] - planned["none"] < weights / 3

"""What an export makes: a bundle that the runtime opens, whose every part agrees with torch."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import WORDS, add_json, small_tokenizer, write_checkpoint

from paceline.export import check
from paceline.export.drafts import DEPTHS
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.report import STAGES
from paceline.export.source import load_model
from paceline.export.torch_model import logits_of
from paceline.export.trial import answer, make_trial
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.generation import Generation
from paceline.runtime.manifest import SCHEMA

pytestmark = pytest.mark.export

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "models"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    add_json(folder, "generation_config.json", eos_token_id=[1, 5], do_sample=True, temperature=0.7, top_k=20)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture(scope="module")
def drafter(tmp_path_factory):
    """Half as deep, half precision, and with more padding rows than its target."""
    folder = tmp_path_factory.mktemp("drafter")
    return write_checkpoint(
        folder, torch.float16, num_hidden_layers=1, vocab_size=384, max_position_embeddings=64
    )


@pytest.fixture(scope="module")
def exported(checkpoint, drafter, tmp_path_factory):
    """The report of an export with everything on, and the stages it went through."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    order = Order(str(checkpoint), drafters={"small": str(drafter)}, taps=("hidden",), eval_text=WORDS * 3)
    shown = []
    return export_bundle(order, out, progress=lambda *step: shown.append(step)), shown


def test_the_runtime_opens_and_verifies_what_was_exported(exported):
    report, _ = exported
    bundle = open_bundle(report.folder)
    assert bundle.manifest == report.manifest
    assert set(bundle.manifest.files) == {
        "chat_template.jinja",
        *(f"drafters/small/draft.{n}{form}.onnx" for n in DEPTHS for form in ("", ".fp16", ".int8")),
        "drafters/small/model.fp16.onnx",
        "drafters/small/model.int8.onnx",
        "drafters/small/model.onnx",
        "drafters/small/model.onnx.data",
        "generation.json",
        "target/model.fp16.onnx",
        "target/model.int8.onnx",
        "target/model.onnx",
        "target/model.onnx.data",
        "tokenizer.json",
    }
    assert bundle.generation == Generation(eos_ids=[1, 5], temperature=0.7, top_k=20)


def test_the_manifest_says_what_the_parts_are(exported):
    report, _ = exported
    target, small = report.manifest.target, report.manifest.drafters["small"]
    assert (target.architecture, target.layers, target.kv_heads, target.head_dim) == ("llama", 2, 2, 12)
    assert (target.vocab, target.context, target.taps, target.quant) == (320, 128, ["hidden"], "none")
    assert (small.vocab, small.context, small.taps, small.layers) == (384, 64, [], 1)
    assert (target.drafts, list(small.drafts)) == ({}, list(DEPTHS))
    assert target.nodes_per_layer == 5
    assert (report.manifest.profile, report.manifest.schema, target.layout) == ("cpu", SCHEMA, 1)


def test_every_part_agrees_with_torch(exported):
    report, _ = exported
    for made in report.parts.values():
        assert made.agreement.relative < 1e-5
        assert made.agreement.top1 == 1.0
        assert made.loss.named
        assert made.loss.after == pytest.approx(made.loss.before, rel=1e-4)


def test_a_half_precision_checkpoint_takes_two_bytes_a_parameter(exported):
    report, _ = exported
    small = report.manifest.drafters["small"]
    data = report.manifest.files["drafters/small/model.onnx.data"].bytes
    assert data < 2.3 * small.parameters


def test_progress_passes_every_stage_of_every_part_in_order(exported):
    _, shown = exported
    begun = [(part, stage) for part, stage, share in shown if share == 0.0]
    passed = [*(("target", stage) for stage in STAGES), *(("small", stage) for stage in STAGES[1:])]
    assert list(dict.fromkeys(begun)) == passed
    assert all(0.0 <= share <= 1.0 for _, _, share in shown)


@pytest.mark.parametrize("stage", ["reference", "check"])
def test_a_text_of_several_windows_moves_the_bar(exported, stage):
    _, shown = exported
    shares = [share for part, at, share in shown if (part, at) == ("small", stage)]
    assert shares == sorted(shares)
    assert any(0.0 < share < 1.0 for share in shares)


def test_the_bundle_names_no_place_on_this_machine(exported, checkpoint):
    report, _ = exported
    for name in ("manifest.json", "target/model.onnx"):
        raw = (report.folder / name).read_bytes()
        assert str(checkpoint).encode() not in raw
        assert b"site-packages" not in raw


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A wider model in int4, exported through the symlinks of a hub cache."""
    base = tmp_path_factory.mktemp("hub")
    real = write_checkpoint(base / "blobs", torch.bfloat16, hidden_size=96, intermediate_size=200)
    snapshot = base / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return export_bundle(Order(str(snapshot), quant="int4", calibrate=False), base / "bundle"), snapshot


def test_an_int4_bundle_from_a_hub_cache_is_made_of_real_files(quantised):
    report, _ = quantised
    open_bundle(report.folder)
    assert not [p for p in report.folder.rglob("*") if p.is_symlink()]
    part = report.parts["target"]
    assert (part.part.quant, part.part.block) == ("int4", 128)
    assert 0.05 < part.matrix_error < 0.1
    assert part.agreement.relative < 1e-3, "by the weights that are stored, without rounding of activations"
    assert not list(report.folder.rglob("*exact*"))
    assert (part.loss.named, part.loss.tokens > 2000) == (False, True)
    assert abs(part.loss.share) > 1e-4, "random weights lose nothing by it, but it is seen"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "block", "profile", "said", "layout"),
    [
        ("int8", None, "cpu", 32, 1),
        ("int8", 128, "cpu", 128, 1),
        ("int8", "channel", "cpu", None, 1),
        ("int4", 128, "portable", 128, None),
        ("none", None, "portable", None, None),
    ],
)
def test_every_form_of_weights_is_exported_and_opened(
    quantised, tmp_path, quant, block, profile, said, layout
):
    _, snapshot = quantised
    calibrate = False if quant == "int4" else None
    order = Order(str(snapshot), quant=quant, block=block, profile=profile, calibrate=calibrate)
    bundle = open_bundle(export_bundle(order, tmp_path / "bundle").folder)
    part = bundle.manifest.target
    assert (part.quant, part.block, part.layout, bundle.manifest.profile) == (quant, said, layout, profile)
    graph = onnx.load(bundle.path(part.graph), load_external_data=False)
    ours = {node.op_type for node in graph.graph.node if node.domain == "paceline"}
    assert (ours == {"TreeAttention"}) == (profile == "portable")
    data = bundle.path(part.data)
    for name, place in part.weights.items():
        tensor = next(t for t in graph.graph.initializer if t.name == name)
        stored = {entry.key: entry.value for entry in tensor.external_data}
        assert (int(stored["offset"]), int(stored["length"])) == (place.offset, place.bytes)
        assert place.offset + place.bytes <= data.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "bits"), [({"quant": "int8"}, 16), ({"quant": "int4", "block": 32}, 16), ({"quant": "int4"}, 8)]
)
def test_a_table_that_is_not_the_head_has_16_bits_and_8_in_a_recipe(tmp_path, order, bits):
    source = write_checkpoint(tmp_path / "model", hidden_size=96, tie_word_embeddings=False)
    report = export_bundle(Order(str(source), **order), tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle" / report.manifest.target.graph, load_external_data=False).graph
    [of_codes] = [n for n in graph.node if n.op_type == "QEmbedding"] or [None]
    tables = [t for t in graph.initializer if list(t.dims) == [320, 96]]
    if bits == 8:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in of_codes.attribute}
        assert (given["bits"], given["block_size"], tables) == (8, 32, [])
    else:
        assert of_codes is None
        assert [table.data_type for table in tables] == [onnx.TensorProto.FLOAT16]


def test_a_graph_that_reads_other_weights_fails_the_check(quantised, tmp_path):
    _, snapshot = quantised
    report = export_bundle(Order(str(snapshot)), tmp_path / "bundle")
    loaded = load_model(str(snapshot))
    part = report.manifest.target
    ids = small_tokenizer().encode(WORDS).ids
    trial = make_trial(ids, part.vocab, part.context)
    answers = answer(partial(logits_of, loaded), trial)
    check.check_graph("target", report.folder, part, trial, answers)
    (tmp_path / "target").mkdir()
    (tmp_path / part.graph).write_bytes((report.folder / part.graph).read_bytes())
    data = np.fromfile(report.folder / f"{part.graph}.data", np.uint8)
    quarter = len(data) // 4
    data[quarter:-quarter] = np.roll(data[quarter:-quarter], 7)
    data.tofile(tmp_path / f"{part.graph}.data")
    with pytest.raises(ExportError, match="disagrees with torch"):
        check.check_graph("target", tmp_path, part, trial, answers)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_real_models_keep_their_perplexity(tmp_path, name, quant):
    text = (SHARED.parent / "corpora" / "tinystories_niklas6_sample.txt").read_text(encoding="utf-8")[:12_000]
    order = Order(str(SHARED / name), quant=quant, eval_text=text)
    report = export_bundle(order, tmp_path / "bundle")
    made = report.parts["target"]
    assert made.loss.tokens > 2000
    print(f"{name} {quant}: {made.loss.told()}")
    assert made.loss.share < {"none": 1e-4, "int8": 0.002, "int4": 0.5}[quant]
    assert made.agreement.top1 == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 6,
            "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 9.0],
            "original_max_position_embeddings": 32,
            "factor": 4.0,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_frequencies_that_depend_on_the_length_pass_the_check(tmp_path, scaling):
    trained = 128 if scaling["rope_type"] == "longrope" else 32
    source = write_checkpoint(
        tmp_path / "model",
        max_position_embeddings=trained,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )
    report = export_bundle(Order(str(source)), tmp_path / "bundle")
    assert report.manifest.target.rope is not None
    assert report.manifest.target.context == 128

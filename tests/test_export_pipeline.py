"""A bundle appears whole, checked, or not at all."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import WORDS, add_json, small_tokenizer, write_checkpoint

from paceline.export import check, quantize
from paceline.export.atomic import new_folder
from paceline.export.capture import capture
from paceline.export.narrow import narrow
from paceline.export.order import Order
from paceline.export.passes import simplify
from paceline.export.pipeline import STAGES, export_bundle
from paceline.export.source import ExportError, load_model
from paceline.export.tokenizer_files import first_difference
from paceline.export.trial import answer, forget_weights, logits_of, make_trial
from paceline.export.weights import write_model
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import SCHEMA, Generation
from paceline.runtime.model.perplexity import perplexity

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
    assert target.nodes_per_layer == 5
    assert (report.manifest.profile, report.manifest.schema, target.layout) == ("cpu", SCHEMA, 1)


def test_every_part_agrees_with_torch(exported):
    report, _ = exported
    for made in report.parts.values():
        assert made.agreement.relative < 1e-5
        assert made.agreement.top1 == 1.0
        before, after = made.perplexity
        assert after == pytest.approx(before, rel=1e-4)


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


@pytest.mark.parametrize("stage", ["try in torch", "check"])
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
    return export_bundle(Order(str(snapshot), quant="int4"), base / "bundle"), snapshot


def test_an_int4_bundle_from_a_hub_cache_is_made_of_real_files(quantised):
    report, _ = quantised
    open_bundle(report.folder)
    assert not [p for p in report.folder.rglob("*") if p.is_symlink()]
    part = report.parts["target"]
    assert (part.part.quant, part.part.block) == ("int4", 128)
    assert 0.05 < part.matrix_error < 0.1
    assert part.agreement.spread < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "block", "profile", "said", "layout"),
    [
        ("int8", None, "cpu", 128, 1),
        ("int8", "channel", "cpu", None, 1),
        ("int4", 128, "portable", 128, None),
        ("none", None, "portable", None, None),
    ],
)
def test_every_form_of_weights_is_exported_and_opened(
    quantised, tmp_path, quant, block, profile, said, layout
):
    _, snapshot = quantised
    order = Order(str(snapshot), quant=quant, block=block, profile=profile)
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


def test_a_graph_that_reads_other_weights_fails_the_check(quantised, tmp_path):
    report, snapshot = quantised
    loaded = load_model(str(snapshot))
    part = report.manifest.target
    ids = small_tokenizer().encode(WORDS).ids
    trial = make_trial(ids, part.vocab, part.context)
    answers = answer(loaded, trial)
    check.check_graph("target", report.folder, part, trial, answers)
    (tmp_path / "target").mkdir()
    (tmp_path / part.graph).write_bytes((report.folder / part.graph).read_bytes())
    data = np.fromfile(report.folder / f"{part.graph}.data", np.uint8)
    quarter = len(data) // 4
    data[quarter:-quarter] = np.roll(data[quarter:-quarter], 7)
    data.tofile(tmp_path / f"{part.graph}.data")
    with pytest.raises(ExportError, match="disagrees with torch"):
        check.check_graph("target", tmp_path, part, trial, answers)


def test_torchs_weights_are_really_freed_before_the_check(checkpoint, tmp_path):
    loaded = load_model(str(checkpoint))
    graph = capture(loaded)
    simplify(graph)
    narrow(graph, loaded.dtype, lossless=True)
    write_model(graph, tmp_path, lambda share: None)
    weak = [parameter.untyped_storage()._weak_ref() for parameter in loaded.model.parameters()]
    assert not any(map(torch.UntypedStorage._expired, weak))
    forget_weights(loaded)
    assert all(map(torch.UntypedStorage._expired, weak))
    for pointer in weak:
        torch.UntypedStorage._free_weak_ref(pointer)


def test_a_planted_nibble_swap_writes_no_bundle(checkpoint, tmp_path, monkeypatch):
    right = quantize._pack

    def swapped(codes, bits):
        packed = right(codes, bits)
        return (packed >> np.uint8(4)) | (packed << np.uint8(4))

    monkeypatch.setattr(quantize, "_pack", swapped)
    with pytest.raises(ExportError, match="packed matrix"):
        export_bundle(Order(str(checkpoint), quant="int4"), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["load", "try in torch"])
def test_ctrl_c_leaves_nothing_behind(checkpoint, tmp_path, stage):
    def interrupt(part, at, share):
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(Order(str(checkpoint)), tmp_path / "bundle", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_killed_export_leaves_no_bundle_and_the_next_one_sweeps(tmp_path):
    out = tmp_path / "bundle"
    code = (
        "import sys, time; from pathlib import Path; from paceline.export.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1]), False) as work:\n"
        "    (work / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    with child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(out, False) as work:
        (work / "whole").write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (out / "whole").read_text() == "y"


def test_an_existing_folder_is_replaced_only_by_force_and_only_after_success(tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    with pytest.raises(ValueError, match="--force"), new_folder(out, False):
        pass
    with pytest.raises(FileNotFoundError), new_folder(out, True) as work:
        (work / "manifest.json").rename(work / "missing")
    assert (out / "manifest.json").read_text() == "old"
    with new_folder(out, True) as work:
        (work / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_force_never_removes_what_is_no_bundle(tmp_path):
    out = tmp_path / "papers"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a bundle"), new_folder(out, True):
        pass
    assert (out / "thesis.txt").exists()


REFUSED = [
    ({"profile": "cuda"}, "profile cuda does not exist yet"),
    ({"profile": "quantum"}, "profile quantum is unknown"),
    ({"quant": "int3"}, "unknown --quant"),
    ({"block": 32}, "--block needs"),
    ({"quant": "int4", "block": 48}, "--block 48"),
    ({"quant": "int4", "block": "channel"}, "--block channel needs --quant int8"),
    ({"quant": "int8", "block": "channel", "profile": "portable"}, "--block channel needs"),
    ({"taps": ("hidden", "last")}, "no tap 'last'"),
    ({"drafters": {"lookup": "x"}}, "may not be named 'lookup'"),
    ({"drafters": {"Big One": "x"}}, "no name for a drafter"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_wrong_order_is_refused_before_anything_is_read(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        export_bundle(replace(Order("nowhere"), **change), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_drafter_with_another_tokenizer_is_refused_by_name_before_the_target_is_exported(
    checkpoint, tmp_path
):
    other = write_checkpoint(
        tmp_path / "other", tokenizer=small_tokenizer("quick brown foxes jump over lazy dogs")
    )
    order = Order(str(checkpoint), drafters={"stranger": str(other)})
    seen = set()
    with pytest.raises(ExportError, match=r"stranger has a different tokenizer \(.*cross-vocabulary"):
        export_bundle(order, tmp_path / "bundle", progress=lambda part, stage, share: seen.add(stage))
    assert seen == {"find files"}


@pytest.mark.parametrize("wrong", ["no/such/folder", "empty"])
def test_a_wrong_folder_of_a_drafter_is_named_before_the_hub_is_asked_for_the_target(tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / wrong)
    order = Order("nobody-of-this-name/nothing", drafters={"small": source})
    with pytest.raises(ExportError, match=r"has no config\.json|there is no such folder") as raised:
        export_bundle(order, tmp_path / "bundle")
    assert source in str(raised.value)


def test_padding_and_extra_special_tokens_are_no_different_tokenizer():
    plain, padded = small_tokenizer(), small_tokenizer(extra=("<pad0>", "<pad1>"))
    assert first_difference(plain, padded) is None
    assert first_difference(padded, plain) is None


def test_one_exchanged_token_is_a_different_tokenizer():
    ours = small_tokenizer(extra=("<a>", "<b>"))
    assert "<b>" in first_difference(ours, small_tokenizer(extra=("<b>", "<a>")))
    shifted = json.loads(small_tokenizer().to_str())
    names = list(shifted["model"]["vocab"])
    shifted["model"]["vocab"][names[-1]], shifted["model"]["vocab"][names[-2]] = 298, 299
    assert first_difference(small_tokenizer(), type(ours).from_str(json.dumps(shifted))) is not None


def test_a_trial_covers_a_branching_tree_and_fits_the_context():
    for context in (19, 24, 64, 4096):
        trial = make_trial(range(1000), 50, context)
        assert len(trial.prompt) + len(trial.path) + len(trial.rest) <= context
        assert max(trial.prompt + trial.tree + trial.rest) < 50
        assert trial.prompt
        assert trial.rest
    with pytest.raises(ValueError, match="too short"):
        make_trial(range(100), 50, 18)


def test_perplexity_is_that_of_a_uniform_model_and_of_a_sure_one():
    ids = np.random.default_rng(0).integers(0, 50, 200).tolist()
    assert perplexity(lambda t: np.zeros((len(t), 50), np.float32), ids, 32) == pytest.approx(50)

    def sure(tokens):
        logits = np.zeros((len(tokens), 50), np.float32)
        for row, token in enumerate(tokens[1:]):
            logits[row, token] = 60
        return logits

    assert perplexity(sure, ids, 32) == pytest.approx(1)
    with pytest.raises(ValueError, match="two tokens"):
        perplexity(sure, [1], 32)


def test_perplexity_equals_torchs_own_loss(checkpoint):
    loaded = load_model(str(checkpoint))
    ids = small_tokenizer().encode(WORDS).ids[:40]
    ours = perplexity(lambda t: logits_of(loaded, t, len(t)), ids, 40)
    logits = torch.from_numpy(logits_of(loaded, ids, 40)[:-1])
    assert ours == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).exp()), rel=1e-5
    )


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_real_models_keep_their_perplexity(tmp_path, name, quant):
    text = (
        "Once upon a time there was a little girl who had a red ball. She liked to play with it in the park. "
        * 4
    )
    order = Order(str(SHARED / name), quant=quant, eval_text=text)
    report = export_bundle(order, tmp_path / "bundle")
    made = report.parts["target"]
    before, after = made.perplexity
    assert after / before - 1 < {"none": 1e-4, "int8": 0.02, "int4": 0.5}[quant]
    assert made.agreement.top1 >= {"none": 1.0, "int8": 0.9, "int4": 0.6}[quant]


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

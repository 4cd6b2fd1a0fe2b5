"""One part for the native kernels and for accelerators: one model in two forms, stored once where they are equal."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from command_line import call
from plugin_packages import lack_of
from small_checkpoints import write_checkpoint

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.report import Report
from paceline.runtime.buckets import STATIC_DATA
from paceline.runtime.loading import load
from paceline.runtime.manifest import BundleError
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export
PROMPT = "the cat sat on the mat"
FORMS = {"none fp32": ("none", "fp32"), "none fp16": ("none", "fp16"), "int4 fp16": ("int4", "fp16")}


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A target in both forms, with a draft model of one layer."""
    quant, kind = FORMS[request.param]
    place = tmp_path_factory.mktemp("forms")
    target = write_checkpoint(place / "target", max_position_embeddings=64)
    draft = write_checkpoint(place / "draft", num_hidden_layers=1, max_position_embeddings=64)
    sizes = {"static_rows": (1, 4), "static_contexts": (64,), "static_type": kind}
    order = Order(str(target), drafters={"small": str(draft)}, profile="cpu+static", quant=quant, **sizes)  # type: ignore[arg-type]
    return export_bundle(order, place / "bundle")


def tokens(made: Report, **choices: Any) -> list[int]:
    with load(made.folder, threads=1, **{"drafter": "none", **choices}) as session:
        return session.generate(PROMPT, max_tokens=24, sampling=Sampling()).read().tokens


def test_the_cpu_runs_the_kernels_graph_and_another_device_the_static_one(made: Report, careful: str) -> None:
    plain = tokens(made)
    with load(made.folder, threads=1, drafter="small") as session:
        assert session.cache == "fp16"
        assert session._shared.bundle.manifest.target.layout is not None
        assert session._shared.bundle.manifest.drafters["small"].drafts
    assert tokens(made, drafter="small", device_draft=careful) == plain
    static = made.manifest.target.static
    assert static is not None
    with load(made.folder, threads=1, drafter="none", device=careful) as session:
        assert session.cache == static.type


def test_both_forms_have_the_same_weights(made: Report, careful: str) -> None:
    """The tokens are the same although one rounds activations to 8 bits, and the other everything to 16."""
    assert tokens(made, device=careful) == tokens(made)


@pytest.mark.parametrize("word", ["webgpu", "qnn"])
def test_a_device_drafts_for_the_kernels(made: Report, word: str) -> None:
    if lack := lack_of(word):
        pytest.skip(lack)
    usual = ("run", "-b", made.folder, "--raw", PROMPT, "-n", "24", "--temp", "0", "-t", "1", "--json")
    found = call(*usual, "--drafter", "chain:small", "--device-draft", word).json()
    assert found["token_ids"] == tokens(made)
    assert found["stats"]["devices"]["target"] == "CPUExecutionProvider"
    assert found["stats"]["devices"]["small"] != "CPUExecutionProvider"


def test_what_stands_twice_is_said_in_bytes_and_planned(made: Report) -> None:
    files, static = made.manifest.files, made.manifest.target.static
    assert static is not None
    assert static.weights is not None
    own = files[f"target/{STATIC_DATA}"].bytes
    assert own >= static.weights * 0.9
    assert any("target: its static graphs read" in note for note in made.notes)
    assert f"in {static.type}" in call("inspect", made.folder).out

    def planned(*flags: str) -> int:
        said = call("plan", "-b", made.folder, "--drafter", "none", "--json", *flags).json()
        return next(line["bytes"] for line in said["parts"] if line["what"] == "weights")

    assert planned("--profile", "static") == -(-static.weights // 4096) * 4096
    assert planned() == -(-files["target/model.onnx.data"].bytes // 4096) * 4096


def test_a_form_of_the_cache_that_the_static_graphs_lack_is_refused(made: Report) -> None:
    static = made.manifest.target.static
    assert static is not None
    usual = ("run", "-b", made.folder, "--raw", PROMPT, "-n", "3", "--drafter", "none", "--profile", "static")
    other = "fp32" if static.type == "fp16" else "fp16"
    said = call(*usual, "--cache", other)
    assert said.code != 0
    kept = "16 bits" if static.type == "fp16" else "float32"
    assert f"keep their cache in {kept}: leave --cache {other} out" in said.err
    assert call(*usual, "--cache", static.type).code == 0


def test_weights_that_are_changed_are_refused(made: Report) -> None:
    with (made.folder / "target" / STATIC_DATA).open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    try:
        with pytest.raises(BundleError, match=r"static\.onnx\.data"):
            tokens(made)
    finally:
        with (made.folder / "target" / STATIC_DATA).open("r+b") as file:
            file.write(first)

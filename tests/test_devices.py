"""Device words: what is understood, what is refused, and what a device that takes only part of a graph is answered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from command_line import BUNDLE, call, refused_in_one_line
from plugin_packages import lack_of, needs_plugin

from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.model import providers
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.opening import open_on, placement
from paceline.runtime.model.ort import DeviceError, onnxruntime
from paceline.runtime.model.plugins import offered, stdout_kept
from paceline.runtime.model.providers import PROVIDERS, Hardware, Provider, add_library, provider_version
from paceline.runtime.probing.trial import TOLERANCE, Trial
from paceline.runtime.probing.trying import probed

NOWHERE = Provider("nowhere", "AzureExecutionProvider", "CPU")
"""A provider of stock ONNX Runtime that takes no node of ours."""
needs_nowhere = pytest.mark.skipif(
    NOWHERE.name not in onnxruntime().get_available_providers(),
    reason="this ONNX Runtime has no Azure provider",
)
compiler = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(compiler is None or os.name == "nt", reason="no C compiler")


@pytest.fixture(autouse=True)
def _no_library_of_a_test_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_named", {})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("abacus", "unknown device 'abacus': use one of cpu, openvino, webgpu, qnn, cuda, directml"),
        ("cpu:1", "the processor is one device"),
        ("cpu:gpu", "the processor is one device"),
        ("openvino:x", "unknown device 'openvino:x'"),
        ("openvino:", "unknown device 'openvino:'"),
        ("cuda:²", "unknown device"),
        ("", "unknown device ''"),
    ],
)
def test_a_name_that_is_no_device_is_refused(name: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        find_device(name)


@pytest.mark.parametrize("word", [word for word, provider in PROVIDERS.items() if provider.module])
def test_a_package_that_is_not_there_is_named_with_the_extra(word: str) -> None:
    lacking = replace(PROVIDERS[word], word=f"{word} that is not there", module="paceline_has_no_such_module")
    with pytest.raises(
        DeviceError, match=rf"needs the package {lacking.package}: pip install 'paceline\[{word}\]'"
    ):
        offered(lacking)


@pytest.mark.parametrize("word", ["cuda", "directml"])
def test_a_provider_that_is_not_built_in_is_named_with_the_extra(word: str) -> None:
    if PROVIDERS[word].name in onnxruntime().get_available_providers():
        pytest.skip(f"this ONNX Runtime has {word}")
    with pytest.raises(DeviceError, match=rf"needs an ONNX Runtime with .*paceline\[{word}\]"):
        find_device(word)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine", "NAME=PATH"),
        ("=x", "NAME=PATH"),
        ("1=x", "NAME=PATH"),
        ("openvino=x", "is a device of Paceline's own"),
        ("mine=no/such/file.so", "no such file"),
        ("mine=.", "it is no file"),
    ],
)
def test_a_library_that_is_not_named_rightly_is_refused(text: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        add_library(text)


def test_a_library_that_is_no_plugin_is_refused_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "plugin.so"
    text.write_text("no library")
    said = refused_in_one_line("run", "x", "--device", "mine", "--provider-library", f"mine={text}")
    assert "mine: " in said
    assert "plugin.so is not to be used" in said
    other = tmp_path / "other.so"
    other.write_text("another")
    with pytest.raises(DeviceError, match="in this process already"):
        add_library(f"mine={other}")


def test_a_library_changes_the_key_of_what_was_measured_with_it(tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    library.write_text("first")
    add_library(f"mine={library}")
    before = provider_version("mine:1")
    library.write_text("second one")
    assert before not in ("", provider_version("mine:1"))
    assert provider_version("cpu") == provider_version("cuda") == ""


@needs_nowhere
def test_a_device_that_takes_nothing_is_an_error_that_names_the_nodes() -> None:
    """And never a session that runs elsewhere in silence."""
    device, trial = Device("nowhere", NOWHERE), Trial()
    with pytest.raises(DeviceError) as refused:
        open_on(device, trial.graph, Path("g.onnx"), 1, onnxruntime().SessionOptions, packed=False)
    said = str(refused.value)
    assert said.startswith("nowhere does not take 3 of 3 nodes of g.onnx: ")
    for kind in ("SimplifiedLayerNormalization", "MatMul", "Softmax"):
        assert f"{kind} '" in said
    assert "run this part on the CPU" in said
    assert "export" not in said


@needs_nowhere
def test_only_operators_that_a_provider_may_leave_are_left_to_the_cpu() -> None:
    trial = Trial()
    left = frozenset({"SimplifiedLayerNormalization", "MatMul"})
    device = Device("nowhere", replace(NOWHERE, left=left))
    with pytest.raises(DeviceError, match=r"does not take 1 of 3 nodes of g\.onnx: Softmax 'y'; run"):
        open_on(device, trial.graph, Path("g.onnx"), 1, onnxruntime().SessionOptions, packed=False)


@needs_nowhere
@pytest.mark.parametrize(
    ("word", "profile"), [("openvino", "portable"), ("webgpu", "static"), ("qnn", "static")]
)
def test_a_graph_for_the_cpu_is_told_which_profile_the_device_takes_best(word: str, profile: str) -> None:
    bundle = open_bundle(BUNDLE)
    part = bundle.manifest.drafters["small"]
    device = Device("nowhere", replace(NOWHERE, profile=PROVIDERS[word].profile))
    with pytest.raises(
        DeviceError, match=f"or export the model with --profile {profile}, or name another bundle"
    ):
        Graph(bundle.path(part.graph), device, 1, part)


def test_a_graph_of_before_is_not_computed_in_32_bits() -> None:
    """Its window without an end would be 0 there, and no error tells."""
    bundle = open_bundle(BUNDLE)
    part = bundle.manifest.drafters["small"]
    device = Device("narrow", replace(NOWHERE, wide=False))
    with pytest.raises(DeviceError, match="was exported before narrow could run such graphs"):
        Graph(bundle.path(part.graph), device, 1, part)


def test_the_trial_graph_is_onnx_and_computes_what_numpy_does() -> None:
    trial, ort = Trial(), onnxruntime()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(trial.graph, options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": trial.x})
    assert np.abs(got - trial.y).max() < 1e-6
    assert {node.operator for node in placement(session)} == {
        "SimplifiedLayerNormalization", "MatMul", "Softmax",
    }  # fmt: skip


def test_what_a_library_writes_to_the_standard_output_does_not_stand_among_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with stdout_kept(replace(NOWHERE, talks=True)):
        os.write(1, b"noise")
    os.write(1, b"answer")
    assert capfd.readouterr() == ("answer", "noise")


def library_that(does: str, folder: Path) -> str:
    """A shared library that does something when it is loaded, as NAME=PATH."""
    source, made = folder / "plugin.c", folder / "plugin.so"
    source.write_text(
        "#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void begin(void) {{ {does} }}\n"
    )
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    return f"mine={made}"


@needs_compiler
@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("raise(SIGSEGV);", r"it ends the process that tries it \(SIGSEGV"),
        ("_exit(3);", "the process that tried it ended with 3"),
        ("for (;;) pause();", "did not answer within 3 s"),
        ("", "is not to be used: .*CreateEpFactories"),
    ],
    ids=["crashes", "leaves", "hangs", "is no plugin"],
)
def test_a_library_that_ends_its_process_is_a_reason_in_one_line(
    does: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "pause" in does:
        monkeypatch.setattr("paceline.runtime.probing.trying._PATIENCE", 3.0)
    done = call("devices", "--provider-library", library_that(does, tmp_path))
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.split()[:1] == ["mine"]]
    assert "  -  " in line

    assert re.search(words, line)
    assert "cpu " in done.out


@needs_compiler
def test_what_ended_a_process_is_known_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_that("raise(SIGABRT);", tmp_path)
    add_library(library)
    first = probed("mine", library)
    assert "SIGABRT" in first.problem
    monkeypatch.setattr("paceline.runtime.probing.trying._CHILD", "paceline.no.such.module")
    assert probed("mine", library) == first
    assert "SIGABRT" not in probed("mine", library, again=True).problem


def test_devices_are_listed_with_the_reason_of_each_that_cannot_be_used() -> None:
    shown = call("devices", "--json").json()["devices"]
    assert [d["name"] for d in shown if d["name"] in PROVIDERS] == list(PROVIDERS)
    assert shown[0] == shown[0] | {
        "name": "cpu",
        "provider": "CPUExecutionProvider",
        "works": True,
        "problem": "",
    }
    for device in shown:
        assert device["works"] == (not device["problem"])
        assert "\n" not in device["problem"]
        assert "internal error" not in device["problem"]


def test_passes_of_a_bundle_are_timed_on_each_device() -> None:
    shown = call("devices", "-b", BUNDLE, "-t", "1", "--json").json()
    assert shown["threads"] == 1
    costs = shown["devices"][0]["costs"]
    assert list(costs) == ["target", "small"]
    for cost in costs.values():
        assert 0 < cost["one"] < 1
        assert 0 < cost["wide"] < 1
        assert cost["problem"] == ""
    assert costs["small"]["one"] < costs["target"]["one"]
    said = call("devices", "-b", BUNDLE, "-t", "1").out
    assert "    target     a token " in said
    assert "threads    1 (as --threads says)" in said


def test_options_say_what_was_measured_to_matter() -> None:
    openvino = PROVIDERS["openvino"].options
    assert (
        '"INFERENCE_PRECISION_HINT": "f32"'
        in openvino(Hardware("CPU", {"ov_device": "CPU"}), 2)["load_config"]
    )
    assert "NUM_THREADS" not in openvino(Hardware("GPU", {"ov_device": "GPU.1"}), 2)["load_config"]
    assert openvino(Hardware("NPU", {"ov_device": "NPU"}), 2) == {}
    qnn = PROVIDERS["qnn"].options
    assert "soc_model" in qnn(Hardware("CPU", {}), 1)
    assert qnn(Hardware("NPU", {}), 1) == {"backend_type": "htp"}


@pytest.mark.parametrize("word", ["openvino", "qnn", "webgpu"])
def test_a_plugin_runs_a_graph_whole_and_right(word: str) -> None:
    if lack := lack_of(word):
        pytest.skip(lack)
    device, trial = find_device(word), Trial()
    session = open_on(device, trial.graph, Path("g.onnx"), 1, onnxruntime().SessionOptions, packed=False)
    assert {node.provider for node in placement(session)} == {device.provider}
    (got,) = session.run(None, {"x": trial.x})
    assert np.abs(got - trial.y).max() < TOLERANCE / 3


@needs_plugin("openvino")
def test_a_graph_for_the_cpu_is_refused_on_a_plugin_by_the_names_of_its_nodes() -> None:
    said = refused_in_one_line("run", "x", "-n", "3", "--drafter", "small", "--device-draft", "openvino")
    assert "openvino does not take " in said
    assert "drafters/small/model.fp16.onnx: " in said
    assert "--profile portable" in said


@needs_plugin("openvino")
def test_a_plugin_library_that_the_user_names_is_a_device() -> None:
    """Also one whose devices are there under another word already."""
    find_device("openvino")
    library = import_module(PROVIDERS["openvino"].module).get_library_path()
    done = call("devices", "--provider-library", f"mine={library}", "--json")
    [mine] = [device for device in done.json()["devices"] if device["name"] == "mine"]
    assert mine["works"], mine["problem"]
    device = find_device("mine")
    assert (device.runs.alone, device.runs.empty, device.runs.wide) == (True, False, False)
    trial = Trial()
    session = open_on(device, trial.graph, Path("g.onnx"), 1, onnxruntime().SessionOptions, packed=False)
    assert np.abs(session.run(None, {"x": trial.x})[0] - trial.y).max() < TOLERANCE


def test_a_bundle_that_is_none_is_no_devices_fault(tmp_path: Path) -> None:
    done = call("devices", "-b", str(tmp_path / "none"))
    assert done.code != 0
    assert not done.out
    assert "no bundle at" in done.err

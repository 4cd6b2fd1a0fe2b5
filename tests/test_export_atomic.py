"""An export that fails, is stopped or killed leaves nothing behind, and replaces nothing but a bundle."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import write_checkpoint

from paceline.export import products
from paceline.export.atomic import new_folder
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_planted_nibble_swap_writes_no_bundle(checkpoint, tmp_path, monkeypatch):
    right = products.pack

    def swapped(quantised):
        packed = right(quantised)
        return replace(packed, weights=(packed.weights >> np.uint8(4)) | (packed.weights << np.uint8(4)))

    monkeypatch.setattr(products, "pack", swapped)
    with pytest.raises(ExportError, match="packed matrix"):
        export_bundle(Order(str(checkpoint), quant="int4", calibrate=False), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["load", "reference"])
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

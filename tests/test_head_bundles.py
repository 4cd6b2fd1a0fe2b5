"""Whole bundles with exported heads: the runtime runs them, and the words are those of plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from command_line import call
from small_checkpoints import write_checkpoint
from small_heads import TAPS, small_config, write_small_head

from paceline import load
from paceline.export.heads.adding import add_heads
from paceline.export.heads.config import Method
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.manifest import read_manifest
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export

METHODS = tuple(get_args(Method))
PROMPT = "the cat sat on the mat and"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with a head of each method, named after it with a letter before."""
    base = tmp_path_factory.mktemp("heads")
    source = write_checkpoint(base / "model", num_hidden_layers=2)
    export_bundle(Order(str(source), taps=TAPS), base / "target")
    target = read_manifest(base / "target").target
    heads = {
        f"a-{method}": str(write_small_head(base / method, small_config(target, method)))
        for method in METHODS
    }
    add_heads(base / "target", heads, base / "bundle", "int8")
    return base / "bundle"


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_a_head_changes_no_word(bundle: Path, method: str, form: str) -> None:
    with (
        load(bundle, drafter=f"a-{method}", threads=1, cache=form) as drafting,
        load(bundle, drafter="none", threads=1, cache=form) as plain,
    ):
        for sampling in (Sampling(), Sampling(temperature=1.0)):
            told = [
                made.generate(PROMPT, max_tokens=40, sampling=sampling, seed=3).read().tokens
                for made in (drafting, plain)
            ]
            assert told[0] == told[1]
        assert drafting.stats.drafted > 0


def test_nor_does_it_on_the_command_line(bundle: Path) -> None:
    said = {
        name: call("run", "--raw", "-b", bundle, "-n", "24", "--json", "--drafter", name, PROMPT).json()
        for name in ("none", *(f"a-{method}" for method in METHODS))
    }
    assert len({answer["text"] for answer in said.values()}) == 1
    assert all(answer["stats"]["drafted"] > 0 for name, answer in said.items() if name != "none")


def test_inspect_tells_of_heads(bundle: Path) -> None:
    done = call("inspect", bundle)
    assert done.code == 0, done.err
    for words in ("a-eagle3", "eagle3, ", "50%, 25% of drafted tokens by depth"):
        assert words in done.out, words
    assert call("inspect", bundle, "--json").json()["drafters"]["a-hydra"]["accepted"] == [0.5, 0.25]

"""What cannot be exported together is refused before anything is exported."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import small_tokenizer, write_checkpoint

from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.tokens import first_difference
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export


REFUSED = [
    ({"profile": "cuda"}, "profile cuda does not exist yet"),
    ({"profile": "quantum"}, "profile quantum is unknown"),
    ({"profile_draft": "static"}, "--profile-draft is for draft models"),
    ({"profile_draft": "metal", "drafters": {"small": "x"}}, "profile metal is unknown"),
    ({"static_rows": (1, 8)}, "are for --profile static"),
    ({"static_contexts": (256,)}, "are for --profile static"),
    ({"static_type": "fp16"}, "are for --profile static"),
    ({"profile": "static", "static_type": "bf16"}, "unknown --static-type 'bf16': use fp32 or fp16"),
    ({"profile": "cpu+static", "adapt": 4}, r"--adapt needs --profile cpu, and not cpu\+static"),
    ({"profile": "static", "static_rows": (4, 8)}, "--static-rows begins with 1"),
    ({"profile": "static", "static_rows": (1, 8, 4)}, "--static-rows takes up to 8 sizes from 1 to 256"),
    ({"profile": "static", "static_contexts": (8,)}, "--static-context takes up to 8 sizes from 32"),
    ({"profile": "static", "adapt": 4}, "--adapt needs --profile cpu, and not static"),
    ({"quant": "int3"}, "unknown --quant"),
    ({"block": 32}, "--block needs"),
    ({"quant": "int4", "block": 48}, "--block 48"),
    ({"quant": "int4", "block": "channel"}, "--block channel needs --quant int8"),
    ({"quant": "int8", "block": "channel", "profile": "portable"}, "--block channel needs"),
    ({"bits": 5.0}, "--bits is a size for --quant int4: give that too, in place of none"),
    ({"quant": "int4", "bits": 5.0, "block": 32}, "leave --block out"),
    ({"quant": "int4", "bits": 5.0, "profile": "portable"}, "--bits needs --profile cpu, and not portable"),
    ({"quant": "int4", "bits": 3.9}, "--bits 3.9 is not supported: use 4.5 to 8.5"),
    ({"quant": "int4", "bits": float("nan")}, "--bits nan"),
    ({"name": "x" * 201}, "--name takes at most 200 characters"),
    ({"licence": "MIT\n"}, "--licence takes at most 200 characters, on one line"),
    ({"taps": ("hidden", "last")}, "no tap 'last'"),
    ({"drafters": {"lookup": "x"}}, "may not be named 'lookup'"),
    ({"drafters": {"Big One": "x"}}, "no name for a drafter"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_wrong_order_is_refused_before_anything_is_read(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        export_bundle(replace(Order("nowhere"), **change), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_drafter_with_another_tokenizer_brings_it_along(tmp_path):
    other = write_checkpoint(
        tmp_path / "other", tokenizer=small_tokenizer("quick brown foxes jump over lazy dogs")
    )
    ours = write_checkpoint(tmp_path / "ours")
    order = Order(str(ours), drafters={"stranger": str(other)})
    report = export_bundle(order, tmp_path / "bundle")
    part = report.manifest.drafters["stranger"]
    assert part.tokenizer == "drafters/stranger/tokenizer.json"
    assert any("are the target's, too" in note for note in report.notes)
    answers = []
    for drafter in ("none", "chain", "tree", "chain,lookup"):
        with load(tmp_path / "bundle", drafter=drafter, max_nodes=6) as session:
            answers.append(
                [e.token for e in session.generate("the quick", max_tokens=24, sampling=Sampling())]
            )
    assert answers == answers[:1] * 4


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

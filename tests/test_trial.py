"""What an exported graph is measured by: a trial in torch, and the perplexity of a text."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_checkpoints import WORDS, small_tokenizer, write_checkpoint

from paceline.export.capture import capture
from paceline.export.narrow import narrow
from paceline.export.passes import simplify
from paceline.export.source import load_model
from paceline.export.torch_model import forget_weights, logits_of
from paceline.export.trial import make_trial
from paceline.export.weights import write_model
from paceline.runtime.model.perplexity import perplexity

pytestmark = pytest.mark.export


def test_a_trial_covers_a_branching_tree_and_fits_the_context():
    for context in (19, 24, 64, 4096):
        trial = make_trial(range(1000), 50, context)
        assert len(trial.prompt) + len(trial.path) + len(trial.rest) <= context
        assert max(trial.prompt + trial.tree + trial.rest) < 50
        assert trial.prompt
        assert trial.rest
    with pytest.raises(ValueError, match="too short"):
        make_trial(range(100), 50, 18)


def test_torchs_weights_are_really_freed_before_the_check(tmp_path):
    loaded = load_model(str(write_checkpoint(tmp_path / "model")))
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


def test_perplexity_equals_torchs_own_loss(tmp_path):
    loaded = load_model(str(write_checkpoint(tmp_path / "model")))
    ids = small_tokenizer().encode(WORDS).ids[:40]
    ours = perplexity(lambda t: logits_of(loaded, t, len(t)), ids, 40)
    logits = torch.from_numpy(logits_of(loaded, ids, 40)[:-1])
    assert ours == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).exp()), rel=1e-5
    )

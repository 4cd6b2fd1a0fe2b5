"""Adapters of zero change nothing, and a training step is what torch makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from adaptable import RANK, adaptable_bundle, checkpoints, plain_bundle
from small_skips import skip_bundle
from transformers import AutoModelForCausalLM

from paceline.export.adaptation.adding import adapt_bundle
from paceline.export.adaptation.graph import add_adapters
from paceline.export.adaptation.step import training_step
from paceline.export.errors import ExportError
from paceline.export.heads.adding import add_heads
from paceline.export.skips.adding import add_skips
from paceline.export.skips.leaving import add_exits
from paceline.export.skips.wish import SkipWish
from paceline.export.tapping import logits_by_form
from paceline.runtime.adaptation.contract import LIKELIEST, sample_shapes
from paceline.runtime.adaptation.step import TrainingStep
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError, Part, read_manifest, write_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.ops.packed_matmul import unpack_columns
from paceline.runtime.part import WINDOW

STEPS, RATE = 5, 1e-2
VOCAB = 320


def part_of(bundle: Path) -> Part:
    return open_bundle(bundle).manifest.drafters["draft"]


def opened(bundle: Path = Path(), kernels: bool = True) -> TrainingStep:
    folder = bundle if bundle.parts else adaptable_bundle()
    part = part_of(folder)
    return TrainingStep(
        Graph(folder / str(part.training), find_device("cpu"), 1, part, kernels=kernels), part
    )


def some_sample(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sample = {name: np.zeros(shape, kind) for name, (kind, shape) in sample_shapes().items()}
    sample["token_ids"][:] = rng.integers(0, VOCAB, WINDOW)
    sample["ids"][:] = [rng.permutation(VOCAB)[:LIKELIEST] for _ in range(WINDOW)]
    sample["probs"][:] = rng.dirichlet(np.full(LIKELIEST + 2, 0.3), WINDOW)[:, :LIKELIEST]
    sample["probs"][:, -3:] = 0
    sample["weight"][:] = rng.random(WINDOW) < 0.7
    sample["label"][:] = rng.integers(0, VOCAB, WINDOW)
    sample["label_weight"][:] = 0.2 * (rng.random(WINDOW) < 0.3)
    return sample


class Reference:
    """The checkpoint in torch, three of its products with adapters, learning by torch's own Adam."""

    def __init__(self, step: TrainingStep) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoints()[1]).eval()
        for weight in self.model.parameters():
            weight.requires_grad_(False)
        layer = self.model.model.layers[-1]
        self.factors: list[torch.Tensor] = []
        for number, linear in enumerate((layer.self_attn.o_proj, layer.mlp.down_proj, self.model.lm_head)):
            sizes = (linear.in_features, RANK), (RANK, linear.out_features)
            packed = [step.adapters[f"adapter.{number}.{factor}"] for factor in "ab"]
            pair = [
                torch.tensor(np.array(unpack_columns(p, n)), requires_grad=True)
                for p, (_, n) in zip(packed, sizes, strict=True)
            ]
            assert [tuple(p.shape) for p in pair] == list(sizes)
            linear.register_forward_hook(self.adapting(*pair))
            self.factors += pair
        self.optimiser = torch.optim.Adam(self.factors, lr=RATE, eps=1e-6)

    @staticmethod
    def adapting(first: torch.Tensor, second: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda _module, inputs, output: output + inputs[0] @ first @ second

    def loss(self, sample: dict[str, np.ndarray]) -> torch.Tensor:
        given = {name: torch.tensor(array) for name, array in sample.items()}
        logits = self.model(input_ids=given["token_ids"][None]).logits[0]
        law, total, counted = torch.softmax(logits, -1), torch.zeros(()), 0.0
        for row in range(WINDOW):
            weight, label_weight = float(given["weight"][row]), float(given["label_weight"][row])
            if weight:
                used = given["probs"][row] > 0
                p, q = given["probs"][row][used].clamp(min=1e-6), law[row][given["ids"][row][used]]
                rest = 1 - q.sum(), (1 - given["probs"][row].sum()).clamp(min=1e-3)
                total = total + (q * (q / p).log()).sum() + rest[0] * (rest[0] / rest[1]).log()
            total = total - label_weight * law[row, given["label"][row]].log()
            counted += weight + (label_weight > 0)
        return total / counted

    def step(self, sample: dict[str, np.ndarray]) -> float:
        self.optimiser.zero_grad()
        loss = self.loss(sample)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


@pytest.mark.parametrize("kernels", [True, False])
def test_five_steps_are_those_of_torch(kernels: bool) -> None:
    step = opened(kernels=kernels)
    reference = Reference(step)
    for number in range(STEPS):
        sample = some_sample(number)
        assert step.run(sample, RATE) == pytest.approx(reference.step(sample), abs=1e-5)
    for number, factor in enumerate(reference.factors):
        name = f"adapter.{number // 2}.{'ab'[number % 2]}"
        learnt = unpack_columns(step.adapters[name], factor.shape[1])
        assert np.abs(learnt - factor.detach().numpy()).max() < 1e-5, name
        assert np.abs(learnt).max() > 1e-3, "it learnt nothing, which anything would equal"


def test_a_step_learns_and_forgets() -> None:
    step = opened()
    fresh = {name: array.copy() for name, array in step.adapters.items()}
    losses = [step.run(some_sample(), RATE) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
    assert step.steps == 20
    step.forget()
    assert step.steps == 0
    assert all(np.array_equal(fresh[name], array) for name, array in step.adapters.items())
    assert step.run(some_sample(), RATE) == pytest.approx(losses[0])


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    step = opened()
    step.run(some_sample(), RATE)
    before = {name: array.copy() for name, array in step.adapters.items()}
    step.run(some_sample(), float("nan"))
    assert all(np.array_equal(before[name], array) for name, array in step.adapters.items())
    assert step.steps == 1


def test_adapters_of_zero_change_no_bit() -> None:
    ids = list(range(7, 40))
    plain = logits_by_form(plain_bundle(), part_of(plain_bundle()), ids)
    adapted = logits_by_form(adaptable_bundle(), part_of(adaptable_bundle()), ids)
    assert set(plain) == set(adapted) == {"fp32", "fp16", "int8"}
    for form, logits in plain.items():
        assert np.array_equal(logits, adapted[form]), form


def test_every_graph_takes_them_and_no_weight_is_copied() -> None:
    part, plain = part_of(adaptable_bundle()), part_of(plain_bundle())
    assert part.drafts, "several levels a call are part of what is held here"
    assert set(part.graphs) - {part.training} == set(plain.graphs)
    for path in part.graphs:
        inputs = {value.name for value in ir.load(adaptable_bundle() / path).graph.inputs}
        assert set(part.adapters) <= inputs, path
    files = [open_bundle(bundle).manifest.files for bundle in (plain_bundle(), adaptable_bundle())]
    assert files[0][plain.data] == files[1][part.data]


def test_a_model_has_adapters_once_and_of_a_rank(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has adapters already"):
        adapt_bundle(adaptable_bundle(), RANK, tmp_path / "twice")
    with pytest.raises(ValueError, match="from 1 to 64"):
        adapt_bundle(plain_bundle(), 65, tmp_path / "wide")
    assert not list(tmp_path.iterdir())


def test_nothing_else_is_made_of_a_model_with_adapters(tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    made = read_manifest(plain_bundle())
    shutil.copytree(plain_bundle(), bundle)
    target = msgspec.structs.replace(made.target, adapters={"adapter.0.a": [1, made.target.hidden, 16]})
    write_manifest(msgspec.structs.replace(made, target=target), bundle)
    for add in (
        lambda: add_heads(bundle, {}, out, taps=["hidden"]),
        lambda: add_exits(bundle, {"early": [0]}, out),
        lambda: add_skips(bundle, {"thin": SkipWish("text", 0.4, 2)}, out, threads=1),
    ):
        with pytest.raises(
            ExportError, match="has adapters, which come last: take the bundle that --adapt was"
        ):
            add()
    assert not out.exists()


def test_a_model_that_parts_are_made_of_is_left_as_it_is(tmp_path: Path) -> None:
    bundle, old = tmp_path / "bundle", skip_bundle()
    shutil.copytree(old.folder, bundle)
    alone = {"swift": old.manifest.drafters["swift"]}
    write_manifest(msgspec.structs.replace(old.manifest, drafters=alone), bundle)
    with pytest.raises(ExportError, match="no draft model that could learn"):
        adapt_bundle(bundle, RANK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tail_that_is_not_understood_is_refused() -> None:
    part = part_of(plain_bundle())
    graph = ir.load(plain_bundle() / part.graph)
    shapes = add_adapters(graph, part.layers, 2)
    adapted = msgspec.structs.replace(part, adapters=shapes)
    next(node for node in reversed(list(graph.graph)) if node.op_type == "Squeeze").op_type = "Cos"
    with pytest.raises(ExportError, match="Cos, whose gradient is not known"):
        training_step(graph, adapted)


@pytest.mark.parametrize("change", ["elsewhere/adapt.onnx", "drafters/draft/model.onnx"])
def test_a_manifest_with_a_strange_step_is_refused(tmp_path: Path, change: str) -> None:
    made = read_manifest(adaptable_bundle())
    part = msgspec.structs.replace(made.drafters["draft"], training=change)
    files = made.files | {change: next(iter(made.files.values()))}
    write_manifest(msgspec.structs.replace(made, drafters={"draft": part}, files=files), tmp_path)
    with pytest.raises(BundleError, match="training step"):
        read_manifest(tmp_path)

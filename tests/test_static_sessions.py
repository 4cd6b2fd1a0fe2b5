"""Static graphs behind the contract of any model: plain decoding's tokens, whatever drafts, on the CPU."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from command_line import call, refused_in_one_line
from planned_memory import taken
from small_checkpoints import write_checkpoint

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.memory.buckets import BucketCache
from paceline.memory.cache import KeyValueCache
from paceline.runtime.buckets import Buckets
from paceline.runtime.loading import load
from paceline.runtime.manifest import BundleError, read_manifest, write_manifest
from paceline.runtime.model.static import runs
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export
SIZES = Buckets(rows=[1, 4, 8], prompt=64, contexts=[96, 256], windows=[0])
LONG = "the cat sat on the mat and the dog ran to the red ball; " * 5
"""More tokens than the first size of the cache has rows, so that the text crosses it while it is read."""
SHORT = "every morning she rides"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static target with a static draft model."""
    place = tmp_path_factory.mktemp("static")
    target = write_checkpoint(place / "target", max_position_embeddings=192)
    draft = write_checkpoint(place / "draft", num_hidden_layers=1, max_position_embeddings=192)
    order = Order(
        str(target),
        drafters={"small": str(draft)},
        profile="static",
        static_rows=(1, 4, 8),
        static_contexts=(48, 192),
    )
    export_bundle(order, place / "bundle")
    return place / "bundle"


@pytest.fixture(scope="module")
def plain(bundle: Path) -> dict[str, list[int]]:
    """What the graph of free sizes says, token by token."""
    with load(bundle, drafter="none") as session:
        return {prompt: _tokens(session, prompt) for prompt in (LONG, SHORT)}


def _tokens(session: object, prompt: str, number: int = 40) -> list[int]:
    answer = session.generate(prompt, max_tokens=number, sampling=Sampling())  # type: ignore[attr-defined]
    return [event.token for event in answer]


@pytest.mark.parametrize(
    "drafter", ["none", "chain:small", "tree:small", "lookup", "tree:small,lookup", "auto"]
)
def test_every_drafter_gives_the_tokens_of_plain_decoding(
    bundle: Path, plain: dict[str, list[int]], drafter: str
) -> None:
    with load(bundle, drafter=drafter, profile="static") as session:
        for prompt, wanted in plain.items():
            assert _tokens(session, prompt) == wanted


def test_drafting_beside_the_target_gives_the_same(bundle: Path, plain: dict[str, list[int]]) -> None:
    with load(bundle, drafter="chain:small", profile="static", mirror="on", threads=2) as session:
        assert _tokens(session, LONG) == plain[LONG]


def test_trees_wider_than_any_graph_go_in_several_runs(bundle: Path, plain: dict[str, list[int]]) -> None:
    with load(bundle, drafter="tree:small", max_nodes=30, profile="static") as session:
        assert _tokens(session, LONG) == plain[LONG]


def test_a_full_context_slides_as_it_does_elsewhere(bundle: Path) -> None:
    said = []
    for profile in ("auto", "static"):
        with load(bundle, drafter="none", profile=profile, overflow="slide") as session:
            said.append(_tokens(session, LONG, 120))
    assert said[0] == said[1]


def test_the_command_line_runs_static_graphs_and_says_so(bundle: Path) -> None:
    given = ("run", "-b", bundle, "--temp", "0", "--max-tokens", "20", "--json", SHORT)
    both = [
        call(*given, "--drafter", "none"),
        call(*given, "--drafter", "chain:small", "--profile", "static"),
    ]
    assert both[0].json()["text"] == both[1].json()["text"]
    said = call("inspect", bundle).out
    assert "static     1, 4 and 8 rows and prompts of 64, over 48 and 320 of the" in said
    assert "cache      fp16 by default" in said


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_a_cache_that_static_graphs_do_not_have_is_refused_by_their_name(bundle: Path, form: str) -> None:
    said = refused_in_one_line("run", "-b", bundle, "--profile", "static", "--cache", form, SHORT)
    assert "keep their cache in float32" in said
    assert f"leave --cache {form} out" in said
    assert ("--static-type fp16" in said) == (form == "fp16")
    assert "with this version" not in said


@pytest.mark.parametrize("drafter", ["none", "tree:small"])
def test_a_process_takes_what_was_planned(bundle: Path, drafter: str) -> None:
    for _ in range(2):  # the first one measures what the second one's plan says
        held = taken(bundle, drafter, profile="static")
    assert held.planned == pytest.approx(held.peak, rel=0.05)


def test_a_plan_names_what_static_graphs_take(bundle: Path) -> None:
    said = call("plan", "-b", bundle, "--profile", "static", "--drafter", "chain:small", "--json").json()
    lines = {(line["part"], line["what"]): line["bytes"] for line in said["parts"]}
    for part, layers in (("target", 2), ("drafter", 1)):
        assert lines[part, "cache"] == 2 * layers * pages(320 * 2 * 12 * 4)
        assert lines[part, "what rows see"] == pages(4 * sum(rows * (320 + rows) for rows in (1, 4, 8, 64)))


def test_perplexity_is_that_of_the_graphs_that_run(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(LONG)
    given = ("bench", "-b", bundle, "--perplexity", text, "--cache", "fp32", "--json", "--profile")
    free, static = (call(*given, profile).json()["perplexity"] for profile in ("auto", "static"))
    assert static != free
    assert static == pytest.approx(free, rel=1e-4)


def test_a_saved_cache_serves_static_graphs(
    bundle: Path, plain: dict[str, list[int]], tmp_path: Path
) -> None:
    with load(bundle, drafter="none", cache="fp32") as free:
        _tokens(free, LONG, 1)
        free.save(tmp_path / "cache")
    with load(bundle, drafter="none", profile="static") as session:
        assert session.restore(tmp_path / "cache") > 48
        assert _tokens(session, LONG) == plain[LONG]


def pages(size: int) -> int:
    return -(-size // 4096) * 4096


def test_a_pass_is_cut_into_what_there_are_graphs_for() -> None:
    def cut(n: int, want: int) -> list[tuple[int, int, int, bool]]:
        return [(run.at, run.rows, run.size, run.prompt) for run in runs(SIZES, n, want)]

    assert cut(1, 1) == [(0, 1, 1, False)]
    assert cut(3, 3) == [(0, 3, 4, False)]
    assert cut(19, 19) == [(0, 8, 8, False), (8, 8, 8, False), (16, 3, 4, False)]
    assert cut(40, 1) == [(0, 40, 64, True)]
    assert cut(130, 0) == [(0, 64, 64, True), (64, 64, 64, True), (128, 2, 4, False)]


def test_a_cache_that_moves_to_a_larger_size_keeps_its_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 2, 20, 8)).astype(np.float32)
    moving, whole = (
        BucketCache([8, 32], lambda rows: KeyValueCache(2, 2, rows, 8)),
        KeyValueCache(2, 2, 32, 8),
    )
    for cache in (moving, whole):
        cache.write(0, rows, slice(5))
        cache.write(5, rows, [7, 9, 19])
    assert moving.rows == 8
    for cache in (moving, whole):
        cache.write(8, rows, slice(10))
        cache.gather(6, [6, 9, 11])
    assert moving.rows == 32
    held = moving.inputs()
    for name, array in whole.inputs().items():
        np.testing.assert_array_equal(held[name][:, :18], array[:, :18])
    moving.release()
    assert moving.rows == 8
    with pytest.raises(ValueError, match="cache row 40 is beyond the capacity of 32"):
        moving.write(30, rows, slice(10))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--max-nodes", "300"), "the static graphs hold 320 rows"),
        (("--drafter", "tree:small", "--draft-depth", "200"), "the static graphs hold 320 rows"),
    ],
)
def test_what_static_graphs_cannot_hold_is_refused(bundle: Path, flags: tuple[str, ...], says: str) -> None:
    said = refused_in_one_line("run", "-b", bundle, "--profile", "static", *flags, SHORT)
    assert says in said


def test_a_context_beyond_the_model_s_own_is_not_cut_in_silence(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", max_position_embeddings=64)
    sizes: dict[str, tuple[int, ...]] = {"static_rows": (1,), "static_contexts": (32, 64, 500, 900)}
    report = export_bundle(Order(str(model), profile="static", **sizes), tmp_path / "bundle")  # type: ignore[arg-type]
    said = "target: --static-context 500,900 is more than this model has: its static graphs read 64 tokens"
    assert said in report.notes
    found = report.manifest.target.static
    assert found is not None
    assert found.contexts == [32, 192]


def test_static_graphs_of_a_bundle_that_has_none_are_refused() -> None:
    assert "export the model with --profile static" in refused_in_one_line(
        "run", "--profile", "static", "Once"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [4, 1]}, "whose rows do not ascend"),
        ({"prompt": 8}, "too small for its prompts"),
        ({"contexts": [48, 300]}, "not among the files"),
        ({"rows": [1, 4, 7]}, "not among the files"),
        ({"weights": 4096}, r"over weights in 'target/static\.onnx\.data', which is not among the files"),
    ],
)
def test_a_manifest_that_promises_other_graphs_is_refused(
    bundle: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    made = read_manifest(bundle)
    assert made.target.static is not None
    sizes = msgspec.structs.replace(made.target.static, **change)
    target = msgspec.structs.replace(made.target, static=sizes)
    write_manifest(msgspec.structs.replace(made, target=target), tmp_path)
    with pytest.raises(BundleError, match=says):
        read_manifest(tmp_path)


def test_a_plan_counts_what_lies_on_a_device(bundle: Path, careful: str) -> None:
    """Rows that stay there are not in this process a second time."""

    def planned(*flags: str) -> dict[tuple[str, str], int]:
        said = call("plan", "-b", bundle, "--profile", "static", "--drafter", "chain:small", "--json", *flags)
        return {(line["part"], line["what"]): line["bytes"] for line in said.json()["parts"]}

    here, there = planned(), planned("--device-draft", careful)
    assert there["drafter", "cache, on its device"] == here["drafter", "cache"]
    assert there["drafter", "new rows, on its device"] == pages((1 + 4 + 8 + 64) * 2 * 2 * 12 * 4)
    assert there["target", "cache"] == here["target", "cache"]

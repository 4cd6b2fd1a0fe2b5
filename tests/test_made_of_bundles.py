"""What is made of a bundle opens and runs, also of one with static graphs; what does not open never appears."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from command_line import BUNDLE, call
from small_checkpoints import write_checkpoint

from paceline.export.atomic import new_folder
from paceline.export.enlarging import finish, new_files, take_files
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.loading import load
from paceline.runtime.manifest import Part, read_manifest
from paceline.runtime.part import first_layers
from paceline.runtime.request import Sampling
from paceline.runtime.split import halves

pytestmark = pytest.mark.export
PROMPT = "the cat sat on the mat and the dog ran to the red ball"


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a draft model with static graphs beside packed ones."""
    place = tmp_path_factory.mktemp("static")
    target = write_checkpoint(place / "target", num_hidden_layers=4, max_position_embeddings=192)
    draft = write_checkpoint(place / "draft", num_hidden_layers=1, max_position_embeddings=192)
    order = Order(
        str(target),
        drafters={"small": str(draft)},
        quant="int8",
        profile="cpu+static",
        static_rows=(1, 4),
        static_contexts=(192,),
        static_type="fp16",
    )
    export_bundle(order, place / "bundle")
    return place / "bundle"


def _tokens(bundle: Path, **choices: str | int) -> list[int]:
    with load(bundle, **choices) as session:  # type: ignore[arg-type]
        return [event.token for event in session.generate(PROMPT, max_tokens=24, sampling=Sampling())]


@pytest.mark.parametrize(
    ("flags", "choices", "lost"),
    [
        (("--split", "1"), {"mirror": "on", "threads": 2}, "target"),
        (("--exit", "e=1"), {"drafter": "e"}, "target"),
        (("--taps", "hidden.1,hidden"), {"drafter": "small"}, "target"),
        (("--adapt", "2"), {"drafter": "small", "adapt": "on"}, "small"),
        (("--skip", "s={text}", "--skip-trials", "2"), {"drafter": "s"}, ""),
    ],
    ids=["split", "exit", "taps", "adapt", "skip"],
)
def test_what_is_made_of_a_static_bundle_runs_and_says_what_it_lost(
    static: Path, tmp_path: Path, flags: tuple[str, ...], choices: dict[str, str | int], lost: str
) -> None:
    (tmp_path / "text").write_text(f"{PROMPT}. " * 60)
    said = [flag.format(text=tmp_path / "text") for flag in flags]
    made = call("export", static, tmp_path / "out", *said)
    assert made.code == 0, made.err
    assert re.findall(r"note: (\w+): its static graphs are left out", made.err) == ([lost] if lost else [])
    assert ("--profile cpu+static --taps" in " ".join(made.err.split())) == (
        lost == "target" and "--adapt" not in flags
    )
    assert ("--mirror on 'Once" in made.out.replace("\n      ", " ")) == ("--split" in flags)
    manifest = read_manifest(tmp_path / "out")
    for name, part in {"target": manifest.target, **manifest.drafters}.items():
        assert (part.static is not None) == (name in {"target", "small"} - {lost})
    left = {path.name for path in (tmp_path / "out").rglob("*") if "static." in path.name}
    assert left
    assert all(name in str(manifest.files) for name in left)
    assert _tokens(tmp_path / "out", **choices) == _tokens(static, drafter="none")


def test_a_static_target_that_gives_the_tap_is_split_and_keeps_its_static_graphs(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "target", num_hidden_layers=4, max_position_embeddings=192)
    order = Order(
        str(checkpoint), profile="static", static_rows=(1, 4), static_contexts=(192,), taps=("hidden.1",)
    )
    export_bundle(order, tmp_path / "bundle")
    made = call("export", tmp_path / "bundle", tmp_path / "out", "--split", "1")
    assert made.code == 0
    assert "left out" not in made.err
    assert f"next: paceline run -b {tmp_path / 'out'} 'Once" in made.out.replace("\n      ", " ")
    assert "--mirror on --drafter-bundle BUNDLE" in made.out.replace("\n      ", " ")
    wanted = _tokens(tmp_path / "bundle", drafter="none")
    for choices in ({"profile": "static", "drafter": "none"}, {"drafter": "lookup"}):
        assert _tokens(tmp_path / "out", **choices) == wanted


def test_what_is_made_of_a_target_has_neither_its_halves_nor_its_static_graphs(
    static: Path, tmp_path: Path
) -> None:
    assert call("export", static, tmp_path / "exit", "--exit", "e=1").code == 0
    assert call("export", tmp_path / "exit", tmp_path / "both", "--split", "1").code == 0
    manifest = read_manifest(tmp_path / "both")
    target = msgspec.structs.replace(manifest.target, static=read_manifest(static).target.static)
    for part in (first_layers(target, manifest.drafters["e"], 1), *halves(target)):
        assert part.static is None
    assert first_layers(target, manifest.drafters["e"], 1).split is None
    assert _tokens(tmp_path / "both", drafter="e") == _tokens(static, drafter="none")


def _deliver(out: Path, target: Part) -> None:
    old = read_manifest(BUNDLE)
    with new_folder(out, force=False) as work:
        take_files(BUNDLE, old, work)
        finish(old, work, new_files(work, [work / "target"]), target=target)


def test_a_bundle_whose_graph_is_not_that_of_its_manifest_never_appears(tmp_path: Path) -> None:
    target = read_manifest(BUNDLE).target
    _deliver(tmp_path / "right", msgspec.structs.replace(target, nodes_per_layer=1.0))
    assert open_bundle(tmp_path / "right").manifest.target.nodes_per_layer == 1.0
    wrong = {"a tap": {"taps": [*target.taps, "hidden.2"]}, "layers": {"layers": target.layers - 1}}
    for name, change in wrong.items():
        with pytest.raises(ExportError, match="does not open, so nothing was written") as caught:
            _deliver(tmp_path / name, msgspec.structs.replace(target, **change))
        assert ".part-" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / name).exists()


def test_a_static_graph_that_lacks_a_tap_is_found_before_it_is_delivered(
    static: Path, tmp_path: Path
) -> None:
    assert call("export", static, tmp_path / "taps", "--taps", "hidden.1").code == 0
    made, old = tmp_path / "taps", read_manifest(static)
    for name in old.target.static.names() if old.target.static else []:
        (made / "target" / name).write_bytes((static / "target" / name).read_bytes())
    data = made / old.target.stores[-1]
    data.write_bytes((static / old.target.stores[-1]).read_bytes())
    manifest = read_manifest(made)
    with pytest.raises(ExportError, match=r"static\.1x"):
        finish(
            manifest,
            made,
            new_files(made, [made / "target"]),
            target=msgspec.structs.replace(manifest.target, static=old.target.static),
        )


@pytest.mark.parametrize("what", [("exit",), ("head", "--method", "medusa")])
def test_nothing_is_trained_for_a_target_without_packed_products_and_no_answer_is_made(
    tmp_path: Path, what: tuple[str, ...]
) -> None:
    (tmp_path / "prompts").write_text(PROMPT)
    model = write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=64)
    export_bundle(Order(str(model), profile="portable", taps=("hidden.0", "hidden")), tmp_path / "taps")
    asked = ("--target", tmp_path / "taps", "--prompts", tmp_path / "prompts", "--tokens", "40")
    done = call("train", *what, *asked, tmp_path / "out")
    assert done.code == 1
    assert "export the model with --profile cpu or cpu+static" in " ".join(done.err.split())
    assert not (tmp_path / "out" / "answers").exists()

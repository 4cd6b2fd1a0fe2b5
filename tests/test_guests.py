"""Models of another bundle draft for this one, whatever their vocabulary."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from command_line import call, refused_in_one_line
from small_checkpoints import small_tokenizer, write_checkpoint

from paceline.embedded import embedded_bundle
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.guests import with_guest
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.text.text import Text

pytestmark = pytest.mark.export
WORDS = "Once upon a time there was a little dog who had a red ball and a friend"
PROMPTS = ["Once upon a time", "a little dog", "the red ball", "friend"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose words are not the storyteller's tokens."""
    place = tmp_path_factory.mktemp("guests")
    export_bundle(
        Order(str(write_checkpoint(place / "model", tokenizer=small_tokenizer(WORDS)))), place / "bundle"
    )
    return place / "bundle"


def test_a_guests_models_are_draft_models_of_the_bundle(bundle: Path) -> None:
    both = with_guest(open_bundle(bundle), open_bundle(embedded_bundle()))
    assert sorted(both.manifest.drafters) == ["storyteller", "storyteller.small"]
    for part in both.manifest.drafters.values():
        assert both.path(part.graph).is_file()
        assert both.read_graph(part.graph)


@pytest.mark.parametrize(
    "drafter", ["chain:storyteller.small", "tree:storyteller", "chain:storyteller.small,lookup"]
)
@pytest.mark.parametrize("translation", ["", "@direct", "@intersection", "@text"])
def test_answers_are_those_of_plain_decoding(bundle: Path, drafter: str, translation: str) -> None:
    first, *others = drafter.split(",")
    name = ",".join([first + translation, *others])
    with load(bundle) as plain, load(bundle, drafter_bundle=embedded_bundle(), drafter=name) as session:
        plain.set_drafter("none")
        for prompt in PROMPTS:
            for sampling in (Sampling(), Sampling(temperature=1.0, frequency_penalty=0.3)):
                said = [
                    [e.token for e in one.generate(prompt, max_tokens=24, sampling=sampling, seed=3)]
                    for one in (plain, session)
                ]
                assert said[0] == said[1]


@pytest.mark.parametrize("accept", ["coupled", "rejection", "block"])
def test_a_guest_may_have_more_logits_than_tokens(bundle: Path, accept: str) -> None:
    part, name = open_bundle(bundle).manifest.target, open_bundle(bundle).manifest.name.lower()
    assert part.vocab > Text.load(bundle).vocab_size
    for drafter in (f"chain:{name}", f"tree:{name}"):
        with load(embedded_bundle(), drafter_bundle=bundle, drafter=drafter) as session:
            for seed in range(4):
                answer = session.generate(
                    "Once", max_tokens=16, sampling=Sampling(temperature=1.0), accept=accept, seed=seed
                )
                assert len(list(answer)) >= 16


def test_a_guests_own_draft_model_keeps_its_vocabulary(bundle: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", tokenizer=small_tokenizer("quick brown foxes jump"))
    ours = write_checkpoint(tmp_path / "ours", tokenizer=small_tokenizer(WORDS))
    export_bundle(Order(str(ours), drafters={"fox": str(other)}, name="Pair"), tmp_path / "pair")
    both = with_guest(open_bundle(embedded_bundle()), open_bundle(tmp_path / "pair"))
    tokenizers = {name: part.tokenizer for name, part in both.manifest.drafters.items()}
    assert tokenizers["pair"] == "../pair/tokenizer.json"
    assert tokenizers["pair.fox"] == "../pair/drafters/fox/tokenizer.json"
    with load(embedded_bundle(), drafter_bundle=tmp_path / "pair", drafter="chain:pair.fox") as session:
        assert len(list(session.generate("Once upon", max_tokens=12, sampling=Sampling()))) >= 12


def test_names_of_guests_do_not_collide(folder: Path) -> None:
    host, guest = open_bundle(folder), open_bundle(embedded_bundle())
    once = with_guest(host, guest)
    twice = with_guest(once, guest)
    assert len(twice.manifest.drafters) == len(host.manifest.drafters) + 4
    manifest = msgspec.structs.replace(
        guest.manifest, drafters={f"{'x' * 62}-{n}": guest.manifest.drafters["small"] for n in range(2)}
    )
    many = with_guest(host, replace(guest, manifest=manifest))
    assert len(many.manifest.drafters) == len(host.manifest.drafters) + 3


def test_a_guest_of_the_same_tokenizer_needs_no_translation(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with load(folder, drafter_bundle=copy, drafter="chain:storyteller.small") as session:
        answer = session.generate("Once upon a time", max_tokens=30, sampling=Sampling())
        assert len(list(answer)) >= 30
        assert answer.stats.tokens_per_round > 1.3


def test_the_command_line_takes_a_guest(bundle: Path) -> None:
    asked = ["-b", bundle, "--max-tokens", "20", "--temp", "0", "Once upon a time"]
    plain = call("run", *asked, "--drafter", "none")
    drafted = call(
        "run", *asked, "--drafter-bundle", embedded_bundle(), "--drafter", "storyteller.small", "--stats"
    )
    assert drafted.code == 0, drafted.err
    assert drafted.out == plain.out
    assert "storyteller.small" in drafted.err
    shown = call("inspect", bundle, "--drafter-bundle", embedded_bundle())
    assert "drafter storyteller.small" in shown.out


def test_a_plan_counts_both_vocabularies(bundle: Path) -> None:
    asked = [
        "plan",
        "-b",
        bundle,
        "--drafter-bundle",
        embedded_bundle(),
        "--drafter",
        "storyteller.small",
        "--json",
    ]
    done = call(*asked)
    assert done.code == 0, done.err
    assert "two vocabularies" in json.dumps(json.loads(done.out))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--drafter-bundle", "."], "is no bundle"),
        (["--drafter", "chain:small@anew"], "after @ stands one of ngram, direct, intersection, text"),
        (["--drafter", "lookup@text"], "how another vocabulary is read"),
        (["--drafter", "auto@text"], "before @ stands one draft model"),
        (["--drafter", "@text"], "before @ stands one draft model"),
    ],
)
def test_what_is_no_guest_is_refused_in_one_line(
    bundle: Path, tmp_path: Path, given: list[str], why: str
) -> None:
    more = ["--drafter-bundle", str(embedded_bundle())] if "--drafter" in given else []
    said = [word.replace("small@", "storyteller.small@") for word in given]
    assert why in refused_in_one_line("run", "-b", bundle, *said, *more, "Hi")


def test_a_bundle_is_no_guest_of_itself(bundle: Path) -> None:
    assert "cannot draft for itself" in refused_in_one_line(
        "run", "-b", bundle, "--drafter-bundle", bundle, "Hi"
    )


def test_what_a_guest_brings_is_not_recorded(bundle: Path) -> None:
    said = refused_in_one_line("bench", "-b", bundle, "--drafter-bundle", embedded_bundle(), "--record")
    assert "is not written into this one" in said


def test_a_damaged_guest_is_refused(bundle: Path, folder: Path) -> None:
    with (folder / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    assert "tokenizer.json has" in refused_in_one_line("run", "-b", bundle, "--drafter-bundle", folder, "Hi")

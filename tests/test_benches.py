"""Measuring scripts run, if only for a moment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


@dataclass(frozen=True, slots=True)
class Moment:
    """The least that a script does, as somebody would type it, and what it says: a pattern."""

    arguments: str
    says: str
    codes: tuple[int, ...] = (0,)
    writes: str = ""


MOMENTS = {
    "ablation": Moment(
        "OUT --pair same=BUNDLE,ADAPTABLE,storyteller.small,PROMPTS --requests 2 --tokens 8",
        r"same: 2 requests, 16 tokens\n(?s:.*)\| ours \| 0\.\d+ \| [1-5]\.\d+ \| \d.*\n\| ours, learning \| 0\.\d",
        writes="OUT/rows.json",
    ),
    "adaptation": Moment(
        "ADAPTABLE PROMPTS --requests 2 --tokens 8 --block 1", r"1 requests .*\n +2 requests .*\d\.\d"
    ),
    "cache_quality": Moment("BUNDLE STORIES --tokens 80", r"\| int8 \| \d+\.\d+ \| [+-]\d"),
    "cache_speed": Moment("BUNDLE --contexts 8 --widths 1,2 --rounds 2", r"\d"),
    "exactness": Moment(
        "BUNDLE --prompts 1 --tokens 12 --widths 1,8 --threads 1 --drafters chain",
        r"width  1 .* 1\.0 drafted\n.*width  8 .* [2-9]\.\d drafted\n0 of 36 tokens differ",
    ),
    "rendezvous": Moment("--rounds 5", r"begins: \d+ us in the median, .*\nends: [1-9]\d* us"),
    "head_recipes": Moment(
        "STORIES --only medusa --epochs 0.2 --prompt 20", r"\| medusa \| 0\.\d+ 0\.\d+ 0\.\d+ \| 0\.\d+ .* \| \d"
    ),
    "head_times": Moment(
        "--only medusa,falcon --depths 2 --tries 3", r"\| medusa \| \d.*\n\| falcon \| \d+\.\d+ \(\d+\.\d+\) \|"
    ),
    "head_trees": Moment("HEADED ANSWERS --nodes 4 --most 2", r"\| 4 \| tree 2x4 \| \d\.\d+ \| \d+\.\d+ \|"),
    "gguf_forms": Moment(
        "GGUF --text STORIES --tokens 80", r"\| tiny \| \d+\.\d+ \| \d+\.\d+ \([+-]\d\.\d\d%\) \| - \|.* 0 of \d"
    ),
    "loop_overhead": Moment(
        "none chain --rounds 8",
        r"chain +5\.00 tokens a round, +[1-9]\d* us a round in the best tenth, +[1-9]\d* in the median, "
        r"of it +[1-9]\d* and +[1-9]\d* us outside",
    ),
    "memory_budget": Moment(
        "--shares 1.2 --tokens 20 --json OUT", r"\d+\.\d +\d+\.\d +\d+\.\d +[+-]\d+\.\d% +kept +\d+ ", writes="OUT"
    ),
    "mirror": Moment(
        "BUNDLE --limit 1 --tokens 12 --passes 3 --json OUT",
        r"has no split: exit is left out .*\n(?s:.*)"
        r"\| serial 2 \| \d.*1 of 1 \|\n\| window \| .*1 of 1 \|\n\| fan .*\n\| weight \| \d.* \d+%.*1 of 1 \|",
        writes="OUT",
    ),
    "never_slower": Moment(
        "--pairs 1 --tokens 70 --sweep 1 --only hostile --json OUT", r"\| none again \| 1 \|", writes="OUT"
    ),
    "pairs": Moment(
        "OUT --prompts 2 --tokens 4", r"storyteller > tiny +0 of .*\ntiny > .*\n2 prompts, 2 pairs, 0 of them",
        writes="OUT/pairs.json",
    ),
    "quality": Moment("CHECKPOINT STORIES --tokens 80", r"\| int4, block 32, calibrated \| \d+\.\d+ \| [+-]\d"),
    "random_checkpoint": Moment("OUT --shape tiny", r"[\d,]{7,} parameters", writes="OUT/model.safetensors"),
    "scale_model": Moment(
        "OUT --size tiny", r"in float32: \d+ positions, .* same best token in (99\.\d\d|100\.00) %",
        writes="OUT/target/model.safetensors.index.json",
    ),
    "soak": Moment("--minutes 0.05 --threads 1", r"(flat|undecided).*; the chat ended with code 0", codes=(0, 1)),
    "spec_bench": Moment(
        "BUNDLE PROMPTS --each 1 --tokens 8 --context 256 --text STORIES --text-tokens 80 --lengths 16 --rounds 1 "
        "--temp 1 --width 4 "
        "--engine llama.cpp=BUNDLE --json OUT",
        r"(?s)\| auto \| \d+\.\d+ \| \d.*\| auto \| \d+\.\d+ \| 2 of 2 \| 1 of 1 \| 3 of 3 \|"
        r".*\| none \| \d+\.\d+ \| [1-9]",
        writes="OUT",
    ),
    "specmemo": Moment(
        "BUNDLE --rounds 1 --tokens 4 --shares 1 --plot OUT.svg", r"baseline +\d.*\n +\d+\.\d .*%", writes="OUT.svg"
    ),
    "speculation": Moment("BUNDLE --drafters chain --tokens 8 --requests 1 --threads 1", r"chain"),
    "story_requests": Moment(
        "OUT STORIES --train 20 --held-out 3", r"train.jsonl: \d+ requests\n.*: 3 requests", writes="OUT/held_out.jsonl"
    ),
    "ten_stories": Moment("STORIES --requests 1", r"1 requests that name the hero: .*\n3 stories: \d ended"),
    "verify_cost": Moment(
        "--engine paceline=BUNDLE --contexts 8 --threads 1 --rounds 1 --times 1 --tokens 2", r"\d"
    ),
}  # fmt: skip
"""A soak of seconds may be judged either way."""
PEERS = {
    "answering": ("llama_cpp", "llama.cpp BUNDLE 1 8"),
    "against_ort_genai": ("onnxruntime_genai", "BUNDLE BUNDLE"),
    "engines": ("llama_cpp", "llama.cpp BUNDLE 1 8"),
    "requantise": ("llama_cpp", "ANY.gguf . Q4_0"),
}
"""What needs another engine, and says so."""
PARTS = {"spec_tables", "tiktoken_file"}
"""What other scripts import, and nobody runs."""
ROOT = BENCH.parents[1]


def places(folder: Path) -> dict[str, Path]:
    from paceline.embedded import embedded_bundle

    return {
        "BUNDLE": embedded_bundle(),
        "ADAPTABLE": folder / "adaptable",
        "HEADED": folder / "headed",
        "ANSWERS": folder / "answers",
        "OUT": folder / "out",
        "STORIES": folder / "stories.txt",
        "PROMPTS": folder / "prompts.jsonl",
        "CHECKPOINT": folder / "checkpoint",
        "GGUF": folder / "tiny.gguf",
    }


def script(name: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    for word, place in places(folder).items():
        arguments = arguments.replace(word, str(place))
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", *arguments.split()],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=work,
    )
    assert not list(work.iterdir())
    return done


def tree() -> set[Path]:
    """What lies where a bundle or the scripts do."""
    return {path for folder in (ROOT, ROOT / "apps", BENCH) for path in folder.iterdir()}


def write_stories(file: Path) -> None:
    """Short stories, enough of them that some are held out."""
    names, things = ("Tom", "Mia", "Ben", "Sam"), ("ball", "kite", "boat", "hat", "drum", "cake")
    stories = [
        f"Once upon a time {names[i % 4]} had a {things[i % 6]}. The {things[i % 6]} was new. "
        f"Then {names[i % 4]} saw a {things[(i + 1) % 6]}. It was day {i}."
        for i in range(1500)
    ]
    file.write_text("<|endoftext|>".join(stories))


def write_prompts(file: Path) -> None:
    """Two groups of Spec-Bench, in its form."""
    asked = {
        "writing": ["Tell me a story about a cat.", "Another one."],
        "translation": ["Say it in German: a cat"],
    }
    file.write_text(
        "\n".join(json.dumps({"category": group, "turns": turns}) for group, turns in asked.items())
    )


def write_headed(bundle: Path, answers: Path) -> None:
    """A small target with a head of random weights, and what the target answers."""
    from small_checkpoints import write_checkpoint
    from small_heads import TAPS, small_config, write_small_head

    from paceline.export.heads.adding import add_heads
    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle
    from paceline.export.training.answers import Wish, write_answers

    source = write_checkpoint(bundle.parent / "checkpoint")
    target = export_bundle(Order(str(source), taps=TAPS), bundle.parent / "target").manifest.target
    head = write_small_head(bundle.parent / "head", small_config(target, "eagle3"))
    add_heads(bundle.parent / "target", {"small": str(head)}, bundle)
    wish = Wish(taps=TAPS[:2], longest=16, prompt=64)
    write_answers(answers, [f"Tell me about {n} cats" for n in range(4)], bundle, wish, 40, threads=1)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("name", MOMENTS)
def test_a_script_runs_for_a_moment(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from small_checkpoints import write_checkpoint

    moment, at = MOMENTS[name], places(tmp_path)
    if "STORIES" in moment.arguments:
        write_stories(at["STORIES"])
    if "PROMPTS" in moment.arguments:
        write_prompts(at["PROMPTS"])
    if "ADAPTABLE" in moment.arguments:
        from paceline.export.adaptation.adding import adapt_bundle

        adapt_bundle(at["BUNDLE"], 2, at["ADAPTABLE"])
    if "HEADED" in moment.arguments:
        write_headed(at["HEADED"], at["ANSWERS"])
    if "CHECKPOINT" in moment.arguments:
        write_checkpoint(at["CHECKPOINT"])
    if "GGUF" in moment.arguments:
        from gguf_files import make_model, write_model

        write_model(at["GGUF"], make_model("llama"))
    before = tree()
    done = script(name, moment.arguments, tmp_path)
    assert done.returncode in moment.codes, done.stderr
    assert re.search(moment.says, done.stdout, re.IGNORECASE), done.stdout
    assert "nan" not in done.stdout.lower().split()
    assert tree() == before
    if moment.writes:
        assert Path(moment.writes.replace("OUT", str(at["OUT"]))).stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_script_without_its_peer_says_so_in_one_line(name: str, tmp_path: Path) -> None:
    module, arguments = PEERS[name]
    if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0:
        pytest.skip(f"{module} is installed")
    done = script(name, arguments, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "not installed" in done.stderr


def test_every_script_is_among_them() -> None:
    assert {file.stem for file in BENCH.glob("*.py")} == MOMENTS.keys() | PEERS.keys() | PARTS

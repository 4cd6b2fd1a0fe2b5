"""What a bundle keeps of GGUF files: exports each by default, beside llama.cpp on the very file.

    PEERS/bin/python tests/bench/requantise.py MODEL.gguf FOLDER Q4_0 Q5_1 Q4_K_M
    python tests/bench/gguf_forms.py FOLDER/*.gguf --text wikitext2_valid.txt --python PEERS/bin/python --keep BUNDLES

Printed are Markdown tables: perplexity of the first tokens of a text in windows of 512 (torch in float32 on the
file's weights, the bundle, llama.cpp); bytes of the file's tensors and of the bundle's weights; the largest
difference between a weight of the bundle and the same weight as `gguf` reads it; seconds and peak memory of the
export; and how many of 64 greedy tokens behind each prompt are llama.cpp's before the first that is not, with the
difference of the bundle's logits of the two: both engines round activations, each in its own way.
Without --python nothing is asked of llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from verify_cost import Worker

from paceline.export.gguf.reader import read_gguf
from paceline.runtime.loading import load
from paceline.runtime.ops.packed_matmul import dequantised
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

WINDOW, CONTEXT = 512, 1024
PROMPTS = (
    "Why is the sky blue? Answer in one paragraph.",
    "Write a Python function that tells whether a number is prime, with an example.",
    "Tell me a short story about a fox who finds a lost letter.",
    "What is 17 + 26? Explain every step.",
    "List five things to take along on a hike in the mountains, with a reason for each.",
)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights of a bundle beside the file's. bytes of both; the largest difference, and the largest weight."""

    file: int
    bundle: int
    difference: float
    largest: float


def export(file: Path, out: Path, text: Path) -> dict[str, Any]:
    """What `paceline export --json` says, in a process of its own."""
    command = [sys.executable, "-m", "paceline", "export", str(file), str(out), "--force", "--json"]
    done = subprocess.run([*command, "--eval", str(text)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{file}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def matrices(graph: Path) -> Iterator[Floats]:
    """Every matrix of a stored graph, a row for each of its columns: float32[N, K]."""
    model = onnx.load(graph)
    values = {t.name: t for t in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if "bits" not in given or "block_size" not in given:
            continue
        at = next(i for i, name in enumerate(node.input) if name in values and len(values[name].dims) == 3)
        if node.input[at] in seen:
            continue
        seen.add(node.input[at])
        k, n, bits, block = (int(given[name]) for name in ("K", "N", "bits", "block_size"))
        packed = numpy_helper.to_array(values[node.input[at]])
        scales = numpy_helper.to_array(values[node.input[at + 1]]) if block else None
        yield dequantised(packed, scales, K=k, N=n, bits=bits, block_size=block).T


def compare(file: Path, bundle: Path) -> Kept:
    """Every row of the bundle beside the row of the file that is nearest along a fixed direction."""
    tensors = [t for t in read_gguf(file).tensors.values() if len(t.shape) == 2]
    difference = largest = 0.0
    rows: dict[int, list[Floats]] = {}
    for tensor in tensors:
        rows.setdefault(tensor.shape[1], []).append(tensor.values())
    known = {}
    for k, parts in rows.items():
        there, along = np.concatenate(parts), np.random.default_rng(k).normal(size=k)
        places = there @ along
        order = np.argsort(places)
        known[k] = there, along, places[order], order
        largest = max(largest, float(np.abs(there).max()))
    for matrix in matrices(bundle / "target" / "model.onnx"):
        there, along, places, order = known[matrix.shape[1]]
        at = np.searchsorted(places, matrix @ along).clip(1, len(places) - 1)
        off = np.full(len(matrix), np.inf)
        for step in range(-3, 3):
            near = there[order[(at + step).clip(0, len(places) - 1)]]
            off = np.minimum(off, np.abs(near - matrix).max(axis=1))
        difference = max(difference, float(off.max()))
    stored = (bundle / "target" / "model.onnx.data").stat().st_size
    return Kept(sum(t.data.size for t in tensors), stored, difference, largest)


def greedy(session: Session, worker: Worker, tokens: int) -> list[str]:
    """For each prompt how many tokens are the other engine's before the first that is not, and then the difference of
    our logits of the two.
    """
    found, ends = [], list(session.bundle.generation.eos_ids)
    for prompt in PROMPTS:
        session.reset()
        messages = [{"role": "user", "content": prompt}]
        ours = list(session.chat(messages, max_tokens=tokens, sampling=Sampling()).read().tokens)
        ids = list(session.chat_tokens(messages))
        told = worker.tell(do="answer", prompt=ids, tokens=tokens, ends=ends, lookup=0)
        theirs = told["tokens"] + ends[:1] * told["ended"]
        same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))])
        if min(len(ours), len(theirs)) == same:
            found.append(f"{same}")
            continue
        logits = session._target.read([*ids, *ours[:same]])
        found.append(f"{same} ({logits[ours[same]] - logits[theirs[same]]:.2f})")
    session.reset()
    return found


def begin(text: Path, session: Session, tokens: int) -> list[int]:
    """The first tokens of a text."""
    return list(session.encode(text.read_text(encoding="utf-8")))[:tokens]


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--python", help="of an environment with llama-cpp-python")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the bundles, which are thrown away else")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        for line in measured(given, Path(aside)):
            print(line, flush=True)


def measured(given: argparse.Namespace, aside: Path) -> Iterator[str]:
    """The lines of the table."""
    yield (
        "| file | torch | bundle | llama.cpp | tensors MB | weights MB | ratio | largest difference "
        "| export s | peak MB | load | greedy tokens as llama.cpp |"
    )
    yield "|---" * 12 + "|"
    part, folder = aside / "text.txt", given.keep or aside
    for file in given.files:
        out, load_before = folder / file.stem, os.getloadavg()[0]
        part.write_text(given.text.read_text(encoding="utf-8")[: 3 * given.tokens], encoding="utf-8")
        made = export(file, out, part)
        target, kept = made["parts"]["target"], compare(file, out)
        told = target["perplexity"]
        worker = None
        if given.python:
            worker = Worker("", "llama.cpp", str(file), given.python, given.threads, CONTEXT, "answering")
        with load(out, drafter="none", threads=given.threads, context=CONTEXT) as session:
            theirs, same = "-", ["-"]
            if worker is not None:
                ids = begin(part, session, told["tokens"])
                theirs = f"{worker.tell(do='perplexity', ids=ids, window=WINDOW)['perplexity']:.3f}"
                same = greedy(session, worker, given.answer)
        if worker is not None:
            worker.close()
        ratio = told["bundle"] / told["torch"] - 1
        yield (
            f"| {file.stem} | {told['torch']:.3f} | {told['bundle']:.3f} ({ratio:+.2%}) | {theirs} "
            f"| {kept.file / 1e6:.1f} | {kept.bundle / 1e6:.1f} | {kept.bundle / kept.file:.3f} "
            f"| {kept.difference:.2g} of {kept.largest:.2g} | {made['seconds']:.0f} "
            f"| {made['peak_rss_bytes'] / 1e6:.0f} | {load_before:.1f} | {', '.join(same)} |"
        )


if __name__ == "__main__":
    main()

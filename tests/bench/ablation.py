"""What each way to read a draft of another vocabulary brings, with and without the n-gram cache and learning.

    python tests/bench/ablation.py OUT --pair NAME=TARGET,DRAFTS,MODEL,PROMPTS [--pair ...] [--requests 200]
        [--tokens 40] [--width 4] [--adapt off,on]

TARGET and DRAFTS are bundles, MODEL is a draft model's name as `paceline inspect` shows it, PROMPTS JSONL with
`prompt`, `question` or `turns`. To learn, MODEL needs adapters (`paceline export BUNDLE OUT --adapt 8`). Requests are
chats where TARGET has a template. The target answers each request once, greedily; its tokens and the 16 likeliest ones
with their chances are written down. All drafters are then asked over those answers, by the loop that always runs, with
a target that reads its rows from there: greedy answers do not depend on drafts. Chains of a fixed width; whatever waits
is learnt after each request. These are counts: how fast the machine is, and what else it does, changes nothing. OUT
keeps answers and rows; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from adaptation import prompts_of

from paceline.runtime import loaded
from paceline.runtime.answer import Answer
from paceline.runtime.contracts import Scored
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.loading import load
from paceline.runtime.model.model import Model
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

LIKELIEST = 16
LOWEST = -1e9
WAYS = {
    "direct map": "@direct",
    "TLI": "@intersection",
    "SLEM": "@text",
    "ours, no n-gram cache": "",
    "ours": "",
}
"""Suffixes of drafters, by what they are called."""


class Pair(NamedTuple):
    """What drafts for what, on which requests."""

    name: str
    target: str
    drafts: str
    model: str
    prompts: Path

    @classmethod
    def read(cls, text: str) -> Pair:
        """As it is written on the command line."""
        name, _, rest = text.partition("=")
        target, drafts, model, prompts = rest.split(",")
        return cls(name, target, drafts, model, Path(prompts))


class Said(NamedTuple):
    """An answer of a target. laws: ids and natural logarithms of chances of the likeliest tokens, for each token."""

    tokens: list[int]
    laws: list[list[list[float]]]


def main() -> None:
    """Print a table for each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--pair", action="append", required=True, type=Pair.read)
    for name, default in (("requests", 200), ("tokens", 40), ("width", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--adapt", default="off,on")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "rows.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for pair in args.pair:
        prompts = prompts_of(pair.prompts)[: args.requests]
        answers = list(answered(pair, prompts, args))
        print(
            f"\n{pair.name}: {len(answers)} requests, {sum(len(said.tokens) for said in answers):,} tokens\n"
        )
        print("| | accepted | tokens a round | drafted a round |\n|---|---|---|---|", flush=True)
        for way in WAYS:
            for adapt in args.adapt.split(","):
                key = f"{pair.name}, {way}, {adapt}"
                if key not in rows:
                    rows[key] = row(pair, way, adapt, prompts, answers, args)
                    kept.write_text(json.dumps(rows, indent=1))
                print(f"| {way}{', learning' if adapt == 'on' else ''} | {told(rows[key])} |", flush=True)


def answered(pair: Pair, prompts: Sequence[str], args: argparse.Namespace) -> Iterator[Said]:
    """The target's answers; those that are not written down yet are asked for."""
    file = args.out / f"{pair.name}.jsonl"
    known = [Said(*json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
    yield from known
    with load(pair.target, drafter="none", threads=1) as session, file.open("a") as out:
        for prompt in prompts[len(known) :]:
            told = list(ask(session, prompt, args.tokens, LIKELIEST))
            events = [event for event in told if event.token is not None]
            laws = [[list(both) for both in zip(*event.top_logprobs, strict=True)] for event in events]
            said = Said([int(event.token or 0) for event in events], laws)
            out.write(json.dumps(said) + "\n")
            out.flush()
            yield said


def ask(session: Session, prompt: str, most: int, logprobs: int | None = None) -> Answer:
    """A chat where the target can, else a text to go on with."""
    choices: dict[str, Any] = {"max_tokens": most, "sampling": Sampling(), "logprobs": logprobs}
    if session.has_template:
        return session.chat([{"role": "user", "content": prompt}], **choices)
    return session.generate(prompt, **choices)


class Replayed:
    """A target whose rows are those of an answer that is known; all else is the model's."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._said, self._begin, self._end = Said([], []), 0, 0
        self._vocab = model.part.vocab
        self.length = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def says(self, said: Said, prompt: int, end: int) -> None:
        """Answer a prompt of so many tokens like this; end: the token that ends it."""
        self._said, self._begin, self._end, self.length = said, prompt, end, 0

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Nothing is kept: drafters see every prompt whole."""
        return 0

    def prefill(self, tokens: Sequence[int]) -> Scored:
        """A chunk of the prompt."""
        self.length += len(tokens)
        return Scored(np.zeros((0, self._vocab), np.float32))

    def score(self, tree: TokenTree) -> Scored:
        """Rows of the nodes along the answer; those of others say nothing."""
        rows = np.zeros((len(tree), self._vocab), np.float32)
        place, tokens = self.length + 1 - self._begin, self._said.tokens
        node: int | None = 0
        while node is not None:
            rows[node] = self._row(place)
            wanted = tokens[place] if place < len(tokens) else -1
            node = next((c for c in tree.children(node) if int(tree.tokens[c]) == wanted), None)
            place += 1
        return Scored(rows)

    def _row(self, place: int) -> np.ndarray[Any, Any]:
        if place >= len(self._said.tokens):
            row = np.full(self._vocab, LOWEST, np.float32)
            row[self._end] = 0
            return row
        ids, logs = self._said.laws[place]
        rest = max(1 - float(np.exp(logs).sum()), 1e-9) / (self._vocab - len(ids))
        row = np.full(self._vocab, np.log(rest), np.float32)
        row[np.array(ids, np.int64)] = logs
        return row

    def commit(self, path: tuple[int, ...]) -> None:
        """These nodes are text now."""
        self.length += len(path)

    def rewind(self, length: int) -> None:
        """The text ends here."""
        self.length = length


def row(
    pair: Pair,
    way: str,
    adapt: str,
    prompts: Sequence[str],
    answers: Sequence[Said],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What one way brings on all requests, and in each tenth of them."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PACELINE_CACHE"] = cache
        bytes_, loaded.NGRAM_BYTES = loaded.NGRAM_BYTES, 0 if "no n-gram" in way else loaded.NGRAM_BYTES
        drafter = f"chain:{pair.model}{WAYS[way]}"
        try:
            session = load(pair.target, drafter_bundle=pair.drafts, drafter=drafter, adapt=adapt, threads=1)
        finally:
            loaded.NGRAM_BYTES = bytes_
        with session:
            control = FixedLimit(args.width, args.width)
            session._drafting = dataclasses.replace(session._drafting, control=control)
            target = Replayed(session._target)
            session._target = target  # type: ignore[assignment]
            counts = [
                counted(session, target, *one, args.tokens) for one in zip(prompts, answers, strict=True)
            ]
            session._target = target._model
    tenth = max(len(counts) // 10, 1)
    parts = [np.sum(counts[at : at + tenth], axis=0).tolist() for at in range(0, len(counts), tenth)]
    return {"counts": np.sum(counts, axis=0).tolist(), "tenths": parts}


def counted(session: Session, target: Replayed, prompt: str, said: Said, most: int) -> list[int]:
    """Accepted, tested and drafted tokens, and rounds, of one request."""
    answer = ask(session, prompt, most)
    ends = session.bundle.generation.eos_ids
    end = next((token for token in ends if token in session.text.control_ids), 0)
    target.says(said, answer.stats.prompt_tokens, end)
    answer.read()
    if answer.tokens != said.tokens:
        sys.exit(f"{session.drafter_name} changed an answer: {prompt!r:.80}")
    session.learner.wait()
    stats = answer.stats
    return [stats.accepted, stats.tested, stats.drafted, stats.rounds]


def told(found: dict[str, Any]) -> str:
    """Cells of a row."""
    accepted, tested, drafted, rounds = found["counts"]
    return f"{accepted / max(tested, 1):.3f} | {(accepted + rounds) / rounds:.3f} | {drafted / rounds:.2f}"


if __name__ == "__main__":
    main()

"""Speculation end to end on a scale model: every drafter, plain decoding, and the plain decoding of other engines.

    python tests/bench/scale_model.py OUT --size 500M
    paceline export OUT/target BUNDLE --quant int4 --drafter small=OUT/small --drafter wide=OUT/wide
    python tests/bench/speculation.py BUNDLE --engine onnxruntime-genai=ORT --engine llama.cpp=Q4.gguf

Engines are given as to `verify_cost.py`, made from OUT/target or from the random model of the same shape: they
cost the same. Everyone takes a turn on every request, in an order that is turned round each time. Decoding is
what the bundle does by default (greedy, with the storyteller's repetition penalty), the prompt's time is left
out. Printed are medians over the requests with their quarter points, and the median of the ratios to plain
decoding on the same request. `paceline bench -b BUNDLE` shows the same drafters in more detail, without engines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from verify_cost import Bandwidth, Worker, start

from paceline.bench_prompts import built_in_tasks
from paceline.runtime.loading import load
from paceline.runtime.session import Session

PLAIN = "none"
DRAFTERS = "none,chain:small,chain:wide,tree:small,tree:wide,lookup,suffix,recycle,auto"


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, seconds without the prompt, tokens a round."""

    tokens: tuple[int, ...]
    seconds: float
    per_round: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return len(self.tokens) / self.seconds


def ask(session: Session, drafter: str, request: str, most: int) -> Answer:
    """One answer from an empty cache."""
    session.set_drafter(drafter)
    session.reset()
    begun = time.perf_counter()
    events = list(session.chat([{"role": "user", "content": request}], max_tokens=most))
    seconds = time.perf_counter() - begun - session.stats.seconds["prefill"]
    tokens = tuple(event.token for event in events if event.token is not None)
    return Answer(tokens, seconds, session.stats.tokens_per_round)


def row(name: str, answers: list[Answer], plain: list[Answer]) -> str:
    """One line of the table."""
    low, middle, high = np.percentile([a.rate for a in answers], (25, 50, 75))
    ratio = np.median([a.rate / p.rate for a, p in zip(answers, plain, strict=True)])
    same = sum(a.tokens == p.tokens for a, p in zip(answers, plain, strict=True))
    per_round = np.median([a.per_round for a in answers])
    return (
        f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {ratio:.2f} | {per_round:.2f} "
        f"| {same} of {len(answers)} |"
    )


def engine_row(worker: Worker, rates: list[float], plain: list[Answer]) -> str:
    """The same of another engine's plain decoding."""
    low, middle, high = np.percentile(rates, (25, 50, 75))
    ratio = np.median([r / p.rate for r, p in zip(rates, plain, strict=True)])
    return f"| {worker.label}, plain | {middle:.1f} ({low:.1f} to {high:.1f}) | {ratio:.2f} | | |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", action="append", default=[], metavar="KIND=MODEL")
    parser.add_argument("--python", action="append", default=[], metavar="KIND=PYTHON")
    parser.add_argument("--drafters", default=DRAFTERS, help="fused ones are joined by +")
    parser.add_argument("--draft-depth", type=int)
    parser.add_argument("--max-nodes", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=8)
    given = parser.parse_args()
    given.contexts = [128 + given.tokens]
    session = load(
        given.bundle,
        drafter=PLAIN,
        threads=given.threads,
        draft_depth=given.draft_depth,
        max_nodes=given.max_nodes,
    )
    names = [name.replace("+", ",") for name in given.drafters.split(",")]
    names = [PLAIN, *(name for name in names if name != PLAIN)]
    workers, bandwidth = start(given), Bandwidth(given.threads)
    answers: dict[str, list[Answer]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    read = []
    requests = [task.turns[0] for task in built_in_tasks()]
    for name in names:
        ask(session, name, requests[-1], 16)
    for number in range(given.requests):
        request = requests[number % len(requests)]
        one_turn(session, names, request, given.tokens, number, answers)
        read.append(bandwidth.read())
        for worker in workers:
            worker.ask(do="decode", context=128, tokens=4)
            rates[worker.label].append(1 / worker.ask(do="decode", context=128, tokens=given.tokens))
        print(f"{number + 1} of {given.requests}", file=sys.stderr)
    print(
        f"read bandwidth {np.median(read):.0f} GB/s, {given.threads} threads, up to {given.tokens} tokens\n"
    )
    print("| drafter | tok/s | to plain | tokens a round | same answers |\n|---|---|---|---|---|")
    for name in names:
        print(row(name, answers[name], answers[PLAIN]))
    for worker in workers:
        print(engine_row(worker, rates[worker.label], answers[PLAIN]))
        worker.close()


def one_turn(
    session: Session, names: list[str], request: str, most: int, number: int, answers: dict[str, list[Answer]]
) -> None:
    """Everyone answers one request; who goes first changes."""
    first = number % len(names)
    for name in names[first:] + names[:first]:
        answers[name].append(ask(session, name, request, most))


if __name__ == "__main__":
    main()

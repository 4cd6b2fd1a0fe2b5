"""What scoring 1, 2, 4, 8, 16 and 32 tokens at once costs, and plain decoding: Paceline and other engines.

    python tests/bench/random_checkpoint.py CKPT --shape llama-443m
    paceline export CKPT OURS --quant int4
    python -m onnxruntime_genai.models.builder -i CKPT -o ORT -p int4 -e cpu -c CACHE --extra_options block_size=128
    llama-quantize CKPT.gguf Q4.gguf Q4_0             (after llama.cpp's convert_hf_to_gguf.py)
    optimum-cli export openvino -m CKPT --task text-generation-with-past --weight-format int4 \\
        --group-size 64 --ratio 1.0 --sym OV
    python tests/bench/verify_cost.py --engine paceline=OURS --engine onnxruntime-genai=ORT \\
        --engine llama.cpp=Q4.gguf --engine openvino=OV

Every engine is a process of its own; those of environments of their own are named with --python KIND=PYTHON
(llama-cpp-python, openvino and onnxruntime-genai need not share one). The processes take turns: a round asks each
one for every width and for some decoded tokens, in an order that is reversed from round to round, while the
others wait. All logits of all new tokens are computed by everyone. Printed are medians over all rounds and, in
brackets, the quarter points. The read bandwidth is that of numpy in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paceline.runtime.bundle.whole_file import write_atomically

WIDTHS = (1, 2, 4, 8, 16, 32)
DECODE = "decode"
ROOM = 128
"""Rows of the cache beyond the longest context."""
_PAUSE = 0.05
"""Seconds after which the threads of the engine before have gone to sleep."""

Times = dict[int | str, list[float]]


class Worker:
    """A running engine. Raises OSError or ValueError where it does not come up."""

    def __init__(
        self, label: str, kind: str, model: str, python: str, threads: int, context: int, script: str
    ) -> None:
        self.label, self.kind = label, kind
        place = Path(__file__).with_name(f"{script}.py")
        command = [python, str(place), kind, model, str(threads), str(context)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._answer()

    def ask(self, **request: Any) -> float:
        """Seconds."""
        return float(self.tell(**request)["seconds"])

    def tell(self, **request: Any) -> dict[str, Any]:
        """All that it answers."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines() or ["it ended without a word"]
        raise ValueError(said[-1][:200])


@dataclass(slots=True)
class Measured:
    """Seconds of every engine by width (or "decode": seconds a token) and the bandwidth of each round."""

    context: int
    times: dict[str, Times] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    bandwidth: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """How often everything is asked."""

    rounds: int
    times: int
    tokens: int
    threads: int


def one_round(workers: list[Worker], measured: Measured, plan: Plan, bandwidth: Bandwidth) -> None:
    """Everyone once, each width after a pass that does not count."""
    measured.bandwidth.append(bandwidth.read())
    for worker in workers:
        time.sleep(_PAUSE)
        times = measured.times[worker.label]
        for width in WIDTHS:
            asked = {"do": "verify", "context": measured.context, "width": width}
            worker.ask(**asked)
            times[width] += [worker.ask(**asked) for _ in range(plan.times)]
        times[DECODE].append(worker.ask(do=DECODE, context=measured.context, tokens=plan.tokens))


class Bandwidth:
    """A read of half a gigabyte by every thread, with what numpy has."""

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(1 << 26, np.int64), threads)
        self._pool = ThreadPoolExecutor(threads)

    def read(self) -> float:
        """Gigabytes a second, the best of three."""
        size = sum(part.nbytes for part in self._parts)
        best = 0.0
        for _ in range(3):
            begun = time.perf_counter()
            list(self._pool.map(np.bitwise_or.reduce, self._parts))
            best = max(best, size / (time.perf_counter() - begun) / 1e9)
        return best


def table(measured: Measured) -> list[str]:
    """Markdown: milliseconds by width, the ratio of 8 tokens to one, tokens a second."""
    low, middle, high = np.percentile(measured.bandwidth, (25, 50, 75))
    lines = [
        f"context {measured.context}, ms for T tokens; read bandwidth {middle:.0f} GB/s ({low:.0f} to {high:.0f})",
        "",
        "| engine | " + " | ".join(f"T={w}" for w in WIDTHS) + " | 8 to 1 | decode tok/s |",
        "|---" * (len(WIDTHS) + 3) + "|",
    ]
    for label, times in measured.times.items():
        cells = [_shown(1e3 * np.array(times[w])) for w in WIDTHS]
        ratio = np.median(times[8]) / np.median(times[1])
        cells += [f"{ratio:.2f}", _shown(1 / np.array(times[DECODE]))]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _shown(values: Any) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def start(given: argparse.Namespace, script: str = "engines") -> list[Worker]:
    """Every engine that comes up; one line for each that does not. script: what each of them runs."""
    pythons = dict(pair.split("=", 1) for pair in given.python)
    kinds = [pair.split("=", 1)[0] for pair in given.engine]
    workers = []
    for pair in given.engine:
        kind, model = pair.split("=", 1)
        label = kind if kinds.count(kind) == 1 else f"{kind} {Path(model).name}"
        try:
            python = pythons.get(kind, sys.executable)
            context = max(given.contexts) + ROOM
            workers.append(Worker(label, kind, model, python, given.threads, context, script))
        except (OSError, ValueError) as error:
            print(f"{label} is left out: {error}", file=sys.stderr)
    return workers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="append", required=True, metavar="KIND=MODEL")
    parser.add_argument("--python", action="append", default=[], metavar="KIND=PYTHON")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=3, help="passes of a width in a round")
    parser.add_argument("--tokens", type=int, default=24, help="decoded tokens in a round")
    parser.add_argument("--json", type=Path, help="also write every single time")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.times, given.tokens, given.threads)
    workers, bandwidth = start(given), Bandwidth(given.threads)
    found = []
    for context in given.contexts:
        measured = Measured(context)
        for worker in workers:  # reads the prompt and warms up
            worker.ask(do=DECODE, context=context, tokens=4)
        for number in range(plan.rounds):
            one_round(workers[:: -1 if number % 2 else 1], measured, plan, bandwidth)
        found.append(measured)
        print("\n".join(table(measured)) + "\n", flush=True)
    for worker in workers:
        worker.close()
    if given.json is not None:
        rows = [{"context": m.context, "bandwidth": m.bandwidth, "seconds": m.times} for m in found]
        write_atomically(given.json, json.dumps(rows).encode(), private=False)


if __name__ == "__main__":
    main()

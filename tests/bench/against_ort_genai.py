"""Plain decoding of one int4 checkpoint, Paceline and onnxruntime-genai in turn, in one process.

    pip install onnxruntime-genai==0.18.0
    python tests/bench/random_checkpoint.py CKPT
    paceline export CKPT OURS --quant int4 --block 128
    python -m onnxruntime_genai.models.builder -i CKPT -o THEIRS -p int4 -e cpu -c CACHE \\
        --extra_options block_size=128
    python tests/bench/against_ort_genai.py OURS THEIRS

128 prompt tokens, 64 new ones, 2 threads; the median of seven rounds and the ratio of each pair.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from paceline.runtime.loading import load

try:
    import onnxruntime_genai as og
except ImportError:
    sys.exit("onnxruntime-genai is not installed: pip install onnxruntime-genai==0.18.0")

PROMPT = np.random.default_rng(0).integers(300, 900, 128).tolist()
NEW, ROUNDS = 64, 7


def ours(folder: str) -> Callable[[], float]:
    """Seconds a token of plain decoding after the prompt."""
    session = load(folder, drafter="none", threads=2, context=512)

    def run() -> float:
        session.reset()
        events = iter(session.generate(PROMPT, max_tokens=NEW + 1))
        next(events)
        begun = time.perf_counter()
        count = sum(event.token is not None for event in events)
        return (time.perf_counter() - begun) / count

    return run


def theirs(folder: str) -> Callable[[], float]:
    """The same of onnxruntime-genai."""
    config = og.Config(folder)
    config.overlay(
        '{"model":{"decoder":{"session_options":{"intra_op_num_threads":2,"inter_op_num_threads":1}}}}'
    )
    model = og.Model(config)

    def run() -> float:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=512, min_length=400, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(PROMPT)
        generator.generate_next_token()
        generator.generate_next_token()
        begun = time.perf_counter()
        for _ in range(NEW):
            generator.generate_next_token()
        return (time.perf_counter() - begun) / NEW

    return run


def main() -> None:
    """Interleave and print."""
    runs = {"paceline": ours(sys.argv[1]), "onnxruntime-genai": theirs(sys.argv[2])}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for turn in range(ROUNDS):
        for name in sorted(runs, reverse=bool(turn % 2)):
            seconds[name].append(runs[name]())
    for name, values in seconds.items():
        rates = sorted(1 / v for v in values)
        print(f"{name:18} {np.median(rates):6.1f} tok/s  ({rates[0]:.1f} to {rates[-1]:.1f})")
    ratios = np.array(seconds["onnxruntime-genai"]) / np.array(seconds["paceline"])
    print(f"ratio {np.median(ratios):.3f}  ({ratios.min():.3f} to {ratios.max():.3f})")


if __name__ == "__main__":
    main()

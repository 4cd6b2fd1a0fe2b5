"""Microseconds that a thread beside the target needs to begin with the target's pass, and to end with it.

    python tests/bench/rendezvous.py [BUNDLE] [--rounds 1000]

begins: from the call before the pass to the first line of the work, while the target runs a pass of 5 rows on one
thread. ends: from the end of the pass until work that asks all the while whether it is over has ended. A pass of the
draft model that is running when the target ends comes on top. Medians and the slowest hundredth.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from paceline.embedded import embedded_bundle
from paceline.runtime.beside import Meanwhile, Worker
from paceline.runtime.loading import load
from paceline.runtime.tree import TokenTree

ROWS, PAST = 5, 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=embedded_bundle())
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    worker, tree = Worker(), TokenTree.root(0)
    begun, began = [0.0], list[float]()

    def work(meanwhile: Meanwhile) -> None:
        began.append(time.perf_counter() - begun[0])
        while not meanwhile.over():
            os.sched_yield()  # as a pass does, it lets the other thread go on

    ended = list[float]()
    with load(given.bundle, threads=1, drafter="none") as session:
        target = session._target
        target.probe(ROWS, PAST)
        for _ in range(given.rounds):
            worker.later(work)
            begun[0] = time.perf_counter()
            worker.begin(tree)
            target.probe(ROWS, PAST)
            ended.append(worker.rest())
    worker.close()
    for name, taken in (("begins", began), ("ends", ended)):
        usual, slow = 1e6 * np.percentile(taken, [50, 99])
        print(f"{name}: {usual:.0f} us in the median, {slow:.0f} us in the slowest hundredth")


if __name__ == "__main__":
    main()

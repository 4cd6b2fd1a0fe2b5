"""What a draft of each method takes: heads of random weights, a pair read and so many levels drafted.

    python tests/bench/head_times.py [--only METHOD,METHOD] [--depths 2,4,8] [--tries 200]

For the storyteller, one thread, int8, 1,024 tokens, after 100 pairs; methods take turns. The least of the tries is
told, and the median.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from small_heads import small_config, write_small_head  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.heads.adding import add_heads  # noqa: E402
from paceline.export.heads.config import Method  # noqa: E402
from paceline.runtime.bundle.bundle import Bundle, open_bundle  # noqa: E402
from paceline.runtime.model.device import find_device  # noqa: E402
from paceline.runtime.model.graph import Graph  # noqa: E402
from paceline.runtime.model.head import Head  # noqa: E402
from paceline.runtime.model.model import Model  # noqa: E402

PAST, CONTEXT = 100, 256
# DFlash drafts all levels or none, Kangaroo a token a pass of the target's layers.
METHODS = [method for method in get_args(Method) if method not in ("dflash", "kangaroo")]


def opened(bundle: Bundle, name: str) -> Head:
    """A head of a bundle, ready to draft on one thread."""
    part, device = bundle.manifest.drafters[name], find_device("cpu")
    graphs = {path: Graph(bundle.path(path), device, 1, part) for path in part.graphs_for("fp32")}
    model = Model(graphs[part.graph], part, CONTEXT, 1, 256)
    head = Head(model, bundle.draft_ids(part), lambda path: graphs[path])
    head.open()
    return head


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--depths", default="2,4,8")
    parser.add_argument("--tries", type=int, default=200)
    asked = parser.parse_args()
    depths = [int(depth) for depth in asked.depths.split(",")]
    target = open_bundle(embedded_bundle()).manifest.target
    sizes = {"vocab": 1024, "kv_heads": 2, "head_dim": 64, "inner": 512, "depth": max(depths)}
    with tempfile.TemporaryDirectory() as place:
        folders = {
            f"a-{method}": str(write_small_head(Path(place, method), small_config(target, method, **sizes)))
            for method in asked.only.split(",")
        }
        add_heads(embedded_bundle(), folders, Path(place, "bundle"), "int8")
        bundle = open_bundle(Path(place, "bundle"))
        heads = {name: opened(bundle, name) for name in folders}
        seconds = {(name, depth): list[float]() for name in heads for depth in depths}
        for _ in range(asked.tries):
            for (name, depth), taken in seconds.items():
                begun = time.perf_counter()
                heads[name].probe(depth, PAST)
                taken.append(time.perf_counter() - begun)
    print(f"| | {' | '.join(f'{depth} levels, ms' for depth in depths)} |\n|---|{'---|' * len(depths)}")
    for name in heads:
        told = (1e3 * np.array(seconds[name, depth]) for depth in depths)
        print(f"| {name[2:]} | {' | '.join(f'{ms.min():.2f} ({np.median(ms):.2f})' for ms in told)} |")


if __name__ == "__main__":
    main()

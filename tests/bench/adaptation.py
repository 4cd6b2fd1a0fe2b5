"""Acceptance over a session of requests, with and without learning from use, request by request in turn.

    python tests/bench/adaptation.py BUNDLE PROMPTS [--drafter-bundle DIR] [--drafter chain] [--requests 200]
        [--tokens 80] [--block 20] [--width 4] [--step-price 0] [--node-price 0] [--adapt off,on]

BUNDLE, or the drafter bundle, has a draft model with adapters (`paceline export BUNDLE OUT --adapt 8`). PROMPTS: JSONL
with `prompt`, `question` or `turns`. Greedy chains of a fixed length, or of as many tokens as fixed prices allow: at a
node price of 0.7 alone a draft ends where a rejection is likelier than 0.3. Whatever waits is learnt after each
request, as when its user reads the answer. Sessions must answer alike. Nothing learnt before is used, or kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from statistics import median

from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.stats import Statistics


def main() -> None:
    """Print a line for each block of requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--drafter-bundle")
    parser.add_argument("--drafter", default="chain")
    for name, default in (("requests", 200), ("tokens", 80), ("block", 20), ("width", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--adapt", default="off,on")
    for price in ("step", "node"):
        parser.add_argument(f"--{price}-price", type=float, default=0.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PACELINE_CACHE"] = cache
        sessions = {adapt: opened(args, adapt) for adapt in args.adapt.split(",")}
        run(args, sessions)
        for session in sessions.values():
            session.close()


def opened(args: argparse.Namespace, adapt: str) -> Session:
    """A session that drafts chains at fixed prices."""
    session = load(args.bundle, drafter_bundle=args.drafter_bundle, drafter=args.drafter, adapt=adapt)
    control = FixedLimit(args.width, args.width, args.step_price, args.node_price)
    session._drafting = dataclasses.replace(session._drafting, control=control)
    return session


def prompts_of(path: Path) -> list[str]:
    """One a line, cut to 600 characters."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line.get("prompt") or line.get("question") or line["turns"][0])[:600] for line in lines]


def run(args: argparse.Namespace, sessions: dict[str, Session]) -> None:
    """Ask both sessions in turn."""
    done: dict[str, list[Statistics]] = {adapt: [] for adapt in sessions}
    for number, prompt in enumerate(prompts_of(args.prompts)[: args.requests]):
        answers = []
        for adapt in list(sessions) if number % 2 else reversed(sessions):
            session = sessions[adapt]
            message = [{"role": "user", "content": prompt}]
            answer = session.chat(message, max_tokens=args.tokens, sampling=Sampling(0.0)).read()
            done[adapt].append(answer.stats)
            answers.append(answer.tokens)
            session.learner.wait()
        assert answers[0] == answers[-1], "learning changed an answer"
        if (number + 1) % args.block == 0:
            shown = "; ".join(f"{adapt}: {told(found[-args.block :])}" for adapt, found in done.items())
            print(f"{number + 1:4} requests  {shown}", flush=True)
    for learned in sessions["on"].learner.learned() if "on" in sessions else ():
        print(
            f"{learned.name}: {learned.steps} steps, {1e3 * learned.seconds / max(learned.steps, 1):.1f} ms each"
        )


def told(found: list[Statistics]) -> str:
    """Acceptance, tokens a round, drafted ones that were wasted, and what a round takes."""
    accepted, tested = (sum(getattr(stats, name) for stats in found) for name in ("accepted", "tested"))
    rounds = sum(stats.rounds for stats in found)
    spent = median((stats.seconds["total"] - stats.seconds["prefill"]) / stats.rounds for stats in found)
    tokens, wasted = (accepted + rounds) / rounds, (sum(stats.drafted for stats in found) - accepted) / rounds
    rate = f"accepted {accepted / max(tested, 1):.3f}, {tokens:.3f} a round, {wasted:.3f} wasted"
    return f"{rate}, {1e3 * spent:.2f} ms a round"


if __name__ == "__main__":
    main()

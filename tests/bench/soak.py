"""Hours of chat through the command line: does memory stay flat, and does it stay as fast as it was?

    python tests/bench/soak.py [--minutes 120] [--memory 114MB] [-b BUNDLE] [-c CONTEXT] [--threads N] [--turns 40]

One `paceline chat --overflow slide` is talked to over a pipe, with `/stats` after each answer and `/clear` after so
many turns, long after the context began to slide. A JSON line a minute gives the resident memory, the highest of it
(VmHWM), tokens, and processor seconds a token, which other work on the machine changes less than the clock. The
verdict compares the last quarter of the time with the second: memory within 1 %, seconds a token within 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
HEROES = "dog cat girl boy bird bear rabbit frog mouse fish farmer queen robot train whale".split()
THINGS = "ball cake tree boat hat flower key book box apple storm lake bridge drum star".split()
REQUESTS = (
    "Tell me a story about a {hero} and a {thing}.",
    "What happened next?",
    "And then the {hero} found a {thing}.",
    "Tell it again, but with a {thing}.",
    "kq9 zf0 {hero}x 77f {thing} 0b1 ~~ }}{{ {hero}",
)
MEMORY, SPEED = 0.01, 0.05
_FIRST = re.compile(r"(\d+) tokens?, [\d.]+ tokens/s")
"""How `/stats` begins."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One minute. Bytes resident now and at most; tokens so far; of this minute: processor and clock ms a token."""

    minutes: float
    resident: int
    highest: int
    turns: int
    tokens: int
    cpu_ms: float
    clock_ms: float


class Chat:
    """The process that is talked to."""

    def __init__(self, flags: Sequence[str]) -> None:
        command = [
            sys.executable,
            "-m",
            "paceline",
            "chat",
            "--overflow",
            "slide",
            "--max-tokens",
            "200",
            *flags,
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, line: str) -> int:
        """The tokens of an answer."""
        self._send(line)
        self._send("/stats")
        found = 0
        for answer in self._process.stdout or ():
            if first := _FIRST.match(answer):
                found = int(first[1])
            if found and answer.startswith("peak memory"):
                return found
        raise SystemExit(f"the chat ended by itself with code {self._process.wait()}")

    def clear(self) -> None:
        """Begin a new conversation."""
        self._send("/clear")

    def end(self) -> int:
        """Leave; the exit code."""
        self._send("/exit")
        return self._process.wait(60)

    def memory(self) -> tuple[int, int]:
        """Bytes resident now, and at most."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split() for line in lines}
        return int(sizes["VmRSS"][1]) * 1024, int(sizes["VmHWM"][1]) * 1024

    def processor_seconds(self) -> float:
        """What all its threads used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def _send(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def request(turn: int) -> str:
    """The message of a turn; a few defeat every drafter."""
    hero, thing = HEROES[turn * 7 % len(HEROES)], THINGS[turn * 11 % len(THINGS)]
    return REQUESTS[turn % len(REQUESTS)].format(hero=hero, thing=thing)


def soak(chat: Chat, minutes: float, turns: int, every: float = 60.0) -> list[Sample]:
    """Talk for so long; a sample a minute, each over whole conversations' worth of turns or parts of them."""
    samples: list[Sample] = []
    begun, turn, tokens = time.monotonic(), 0, 0
    at, cpu, counted = begun, chat.processor_seconds(), 0
    while time.monotonic() - begun < 60 * minutes:
        turn += 1
        tokens += chat.ask(request(turn))
        if turn % turns == 0:
            chat.clear()
        now = time.monotonic()
        if now - at >= every:
            used, fresh = chat.processor_seconds(), max(tokens - counted, 1)
            cpu_ms, clock_ms = 1e3 * (used - cpu) / fresh, 1e3 * (now - at) / fresh
            samples.append(Sample((now - begun) / 60, *chat.memory(), turn, tokens, cpu_ms, clock_ms))
            print(json.dumps(asdict(samples[-1])), flush=True)
            at, cpu, counted = now, used, tokens
    return samples


def verdict(samples: Sequence[Sample]) -> tuple[bool, str]:
    """Whether nothing grew or slowed down, and in words."""
    if len(samples) < 8:
        return False, "undecided: fewer than eight samples"
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = max(s.resident for s in late) / max(s.resident for s in early) - 1
    slower = statistics.median(s.cpu_ms for s in late) / statistics.median(s.cpu_ms for s in early) - 1
    clock = statistics.median(s.clock_ms for s in late) / statistics.median(s.clock_ms for s in early) - 1
    good = grown <= MEMORY and slower <= SPEED
    return good, (
        f"{'flat' if good else 'NOT FLAT'}: {samples[-1].tokens} tokens in {samples[-1].turns} turns; resident "
        f"{max(s.resident for s in early) / 1e6:.1f} MB, then {max(s.resident for s in late) / 1e6:.1f} MB "
        f"({grown:+.2%}), highest {samples[-1].highest / 1e6:.1f} MB; a token took {slower:+.1%} processor time, "
        f"{clock:+.1%} by the clock"
    )


def main() -> None:
    """Talk and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-b", "--bundle")
    parser.add_argument("-c", "--context", type=int)
    parser.add_argument("--memory", default="114MB")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--turns", type=int, default=40)
    given = parser.parse_args()
    flags = {
        "-b": given.bundle,
        "-c": given.context,
        "--memory": given.memory,
        "--threads": given.threads,
    }
    chat = Chat([str(word) for pair in flags.items() if pair[1] is not None for word in pair])
    samples = soak(chat, given.minutes, given.turns, min(60.0, 60 * given.minutes / 8))
    code = chat.end()
    good, line = verdict(samples)
    print(f"{line}; the chat ended with code {code}")
    sys.exit(0 if good and code == 0 else 1)


if __name__ == "__main__":
    main()

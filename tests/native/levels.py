"""Whether every instruction set computes the same bits, on this machine and on emulated ARM ones.

python tests/native/levels.py [CASES]
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from native.build import ROOT, build, this_machine, variants

ARM = ("arm", "arm-dotprod", "arm-plain")
"""Processors with i8mm, with the dot product only, and with neither."""
NARROW = ("narrow",) if this_machine() == "x86_64" else ()
"""The AVX-VNNI kernels on a processor that has AVX-512 instead."""


def levels(variant: str, folder: Path) -> list[str]:
    """The levels that the kernels find on a variant's processor."""
    command = build(variant, "checksums", folder)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def checksums(variant: str, level: str, cases: int, folder: Path) -> list[str]:
    """One line per fuzzed case, computed with one level on a variant's processor."""
    command = [*build(variant, "checksums", folder), level, str(cases)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def differences(
    expected: list[str], variant: str, cases: int, folder: Path
) -> Iterator[tuple[str, list[str]]]:
    """Each level of a variant's processor, with the cases in which it differs from the expected lines."""
    for level in levels(variant, folder):
        found = checksums(variant, level, cases, folder)
        if len(found) != len(expected):
            yield level, [f"{len(found)} lines instead of {len(expected)}"]
        else:
            yield level, [line for line, wanted in zip(found, expected, strict=True) if line != wanted]


def main() -> int:
    """Compare every level with the portable one of this machine; 1 where a bit differs."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    folder = ROOT / "build" / "native"
    expected = checksums("plain", "portable", cases, folder)
    known, failed = variants(), False
    for variant in ("plain", *NARROW, *ARM):
        if (tool := known[variant].missing()) is not None:
            print(f"{variant}: skipped, {tool} is not installed")
            continue
        for level, wrong in differences(expected, variant, cases, folder):
            print(f"{variant}: {level}: {len(expected)} results, {len(wrong)} differ")
            failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

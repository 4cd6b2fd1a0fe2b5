"""Build the C++ test programs of runtime/ops/native: with sanitizers, or for another machine.

Needs nothing but a compiler:
    python tests/native/build.py plain test_matmul               prints the program's path, runs nothing
    python tests/native/build.py --run address test_matmul 60    builds and runs it with an argument of its own
The exit status is the program's, 2 where it does not compile, 3 where this computer lacks the variant's tools.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "runtime" / "ops" / "native"
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = json.loads(
    (KERNELS / "instruction_sets.json").read_text(encoding="utf-8")
)

# The 256-bit kernels in the place of the 512-bit ones, with the encoding that AVX-512 has for the same instruction:
# a machine without AVX-VNNI can then run them, under the name avx512vnni.
NARROW = ("-mavx2", "-mfma", "-mf16c", "-mavx512vl", "-mavx512vnni", "-Davxvnni_tiles=avx512vnni_tiles")

# The kernels are long unrolled templates: with every check inline the compiler takes minutes for a file.
QUICK = (
    "-fno-sanitize=null,object-size",
    "--param=asan-instrumentation-with-call-threshold=0",
    "-Wno-ignored-optimization-argument",
)

COMMON = ("-std=c++17", "-O3", "-g1", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")

# The kernel sources a program is linked with, by the first word of their file names.
PROGRAMS = {
    "test_matmul": ("isa", "matmul"),
    "test_attention": ("isa", "attention"),
    "test_vocabulary": ("isa", "vocabulary"),
    "checksums": ("isa", "matmul", "attention", "vocabulary"),
    "bench_matmul": ("isa", "matmul"),
    "bench_attention": ("isa", "attention"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile everything: the compiler, the machine it is for, and the flags of every file.

    `own` replaces the flags of an instruction set, `without` leaves sources out.
    """

    compiler: str
    machine: str
    flags: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    def missing(self) -> str | None:
        """The tool that this variant needs and this computer lacks."""
        tools = (self.compiler, *(word for word in self.emulator if word.startswith("qemu")))
        return next((tool for tool in tools if shutil.which(tool) is None), None)


def this_machine() -> str:
    """The name of this computer's instruction set, as instruction_sets.json spells it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def variants() -> dict[str, Variant]:
    """Every variant by name; `CXX` names the compiler of this machine's."""
    here = (os.environ.get("CXX", "c++"), this_machine())
    qemu = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
    cross = ("aarch64-linux-gnu-g++", "aarch64")
    sanitize = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *QUICK)
    return {
        "plain": Variant(*here),
        "address": Variant(*here, sanitize),
        "thread": Variant(*here, ("-O1", "-fsanitize=thread")),
        "narrow": Variant(
            *here, ("-DPACELINE_NO_AVXVNNI",), own={"avxvnni": NARROW}, without=frozenset({"matmul_avx512"})
        ),
        # One build, three processors: i8mm, dotprod only, neither.
        "arm": Variant(*cross, emulator=(*qemu, "max")),
        "arm-dotprod": Variant(*cross, emulator=(*qemu, "neoverse-n1")),
        "arm-plain": Variant(*cross, emulator=(*qemu, "cortex-a53")),
        # Looking for leaks is what the emulator cannot do.
        "arm-address": Variant(*cross, sanitize, ("env", "ASAN_OPTIONS=detect_leaks=0", *qemu, "max")),
    }


def instruction_set(source: Path) -> str | None:
    """The instruction set named by the last word of a file name: matmul_avx2.cpp is compiled for avx2."""
    word = source.stem.rpartition("_")[2]
    return word if any(word in sets for sets in INSTRUCTION_SETS.values()) else None


def sources(program: str, variant: Variant) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The program's source files, each with its own flags."""
    sets = {name: tuple(flags) for name, flags in INSTRUCTION_SETS.get(variant.machine, {}).items()}
    yield ROOT / "tests" / "native" / f"{program}.cpp", ()
    for source in sorted(KERNELS.glob("*.cpp")):
        own = instruction_set(source)
        wanted = source.stem.partition("_")[0] in PROGRAMS[program] and source.stem not in variant.without
        if wanted and own is None:
            yield source, ()
        elif wanted and own in sets:
            yield source, variant.own.get(own, sets[own])


def run(command: Sequence[str]) -> None:
    """Run a compiler; its messages are the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def is_current(target: Path, command: str) -> bool:
    """Whether an object is newer than everything it was made from, and was made by the same command."""
    record, depends = target.with_suffix(".command"), target.with_suffix(".d")
    if not (target.exists() and depends.exists() and record.exists()):
        return False
    if record.read_text(encoding="utf-8") != command:
        return False
    _, _, names = depends.read_text(encoding="utf-8").partition(":")
    made = target.stat().st_mtime
    files = [Path(name) for name in re.split(r"\s+", names.replace("\\\n", " ")) if name]
    return all(file.exists() and file.stat().st_mtime < made for file in files)


def compile_one(variant: Variant, source: Path, own: tuple[str, ...], folder: Path) -> Path:
    """The object file of one source, compiled again only where something changed."""
    target = folder / f"{source.stem}.o"
    flags = (*COMMON, *WARNINGS, *variant.flags, *own, f"-I{KERNELS}")
    command = " ".join((variant.compiler, *flags))
    if not is_current(target, command):
        depends = target.with_suffix(".d")
        run([variant.compiler, *flags, "-MMD", "-MF", str(depends), "-c", str(source), "-o", str(target)])
        target.with_suffix(".command").write_text(command, encoding="utf-8")
    return target


def build(name: str, program: str, folder: Path) -> list[str]:
    """Build a program; the command that runs it. Raises RuntimeError with the compiler's messages."""
    variant = variants()[name]
    # Processors that one build serves share its objects.
    folder = folder / (variant.machine if variant.emulator and not variant.flags else name)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = [
            threads.submit(compile_one, variant, source, own, folder)
            for source, own in sources(program, variant)
        ]
        objects = [str(object_file.result()) for object_file in made]
    path = folder / program
    run([variant.compiler, *variant.flags, *objects, "-pthread", "-o", str(path)])
    return [*variant.emulator, str(path)]


def main() -> int:
    """Command line; the exit status is the program's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", choices=sorted(variants()))
    parser.add_argument("program", choices=sorted(PROGRAMS))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "native")
    parser.add_argument("--run", action="store_true", help="run it, with the arguments that follow its name")
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_intermixed_args()
    if (tool := variants()[asked.variant].missing()) is not None:
        print(f"skipped, {tool} is not installed", file=sys.stderr)
        return 3
    try:
        command = build(asked.variant, asked.program, asked.folder)
    except RuntimeError as problem:
        print(problem, file=sys.stderr)
        return 2
    if asked.run:
        return subprocess.run([*command, *asked.arguments]).returncode
    print(" ".join(command))
    return 0


if __name__ == "__main__":
    sys.exit(main())

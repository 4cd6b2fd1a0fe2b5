"""The C++ kernels on every instruction set: their own tests, sanitizers, and the same bits everywhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native.build import Variant, build, instruction_set, sources, variants
from native.levels import ARM, NARROW, checksums, differences, levels


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


def need(variant: str) -> None:
    if (tool := variants()[variant].missing()) is not None:
        pytest.skip(f"{tool} is not installed")


def test_a_file_is_compiled_only_for_the_machine_its_name_belongs_to():
    x86 = {source.name: flags for source, flags in sources("checksums", Variant("c++", "x86_64"))}
    arm = {source.name: flags for source, flags in sources("checksums", Variant("c++", "aarch64"))}
    assert "-mavx2" in x86["matmul_avx2.cpp"]
    assert x86["matmul.cpp"] == x86["matmul_portable.cpp"] == arm["matmul.cpp"] == ()
    assert arm["matmul_neon.cpp"] == ("-march=armv8.2-a+dotprod",)
    assert not {"matmul_neon.cpp", "matmul_i8mm.cpp"} & x86.keys()
    assert not {"matmul_avx2.cpp", "attention_avx512.cpp"} & arm.keys()
    assert instruction_set(Path("matmul.cpp")) is None


@pytest.mark.slow
@pytest.mark.parametrize("program", ["test_matmul", "test_attention", "test_vocabulary"])
@pytest.mark.parametrize(("variant", "shapes"), [("plain", 100), ("address", 20), ("thread", 10), ("arm", 5)])
def test_the_programs_own_tests_pass(variant: str, shapes: int, program: str, folder: Path):
    need(variant)
    done = subprocess.run([*build(variant, program, folder), str(shapes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", *NARROW, *ARM])
def test_every_instruction_set_computes_the_same_bits_as_portable_code_here(variant: str, folder: Path):
    need("plain")
    need(variant)
    expected = checksums("plain", "portable", 60, folder)
    assert len(set(expected)) == len(expected) == 180
    assert {level: wrong for level, wrong in differences(expected, variant, 60, folder) if wrong} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("arm", ["portable", "neon", "i8mm"]),
        ("arm-dotprod", ["portable", "neon"]),
        ("arm-plain", ["portable"]),
    ],
)
def test_an_arm_processor_gets_the_levels_it_can_run(variant: str, expected: list[str], folder: Path):
    need(variant)
    assert levels(variant, folder) == expected


@pytest.mark.slow
def test_a_program_with_a_fault_fails_under_the_sanitizers(folder: Path):
    """The checks above would mean nothing if the sanitizer flags were lost on the way."""
    need("address")
    variant = variants()["address"]
    source, program = folder / "fault.cpp", folder / "fault"
    source.write_text("int main(int count, char **) { int *at = new int[4]; return at[count + 3]; }\n")
    subprocess.run([variant.compiler, *variant.flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr

"""The native kernels: one shared library beside runtime/ops, skipped with one line where no compiler is found.

Everything else about the package is in pyproject.toml. PACELINE_REQUIRE_KERNELS=1, for wheels and for the tests,
makes a failure an error, and any warning of gcc or clang too.
"""

import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from distutils.errors import CCompilerError, DistutilsError
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("runtime/ops/native")
REQUIRED = os.environ.get("PACELINE_REQUIRE_KERNELS", "") not in ("", "0")
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}

UNIX = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]
UNIX += ["-Wall", "-Wextra", "-Wpedantic", *(["-Werror"] if REQUIRED else [])]
MSVC = ["/std:c++17", "/O2", "/EHsc", "/fp:precise", "/W3"]
MSVC_SETS = {"avx2": ["/arch:AVX2"], "avxvnni": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}

SETS = json.loads((NATIVE / "instruction_sets.json").read_text())
"""Compiler flags by machine and instruction set; the last word of a file's name is its instruction set, if any."""


def target_machine(platform_name: str) -> str:
    """What the library is built for: `x86_64`, `aarch64`, or another name, which gets the portable kernels."""
    name = platform_name.replace("_", "-").replace("x86-64", "x86_64").rpartition("-")[2]
    if sys.platform == "darwin":
        asked = os.environ.get("ARCHFLAGS", "").split()
        name = asked[-1] if asked else platform.machine() if name == "universal2" else name
        os.environ.setdefault("ARCHFLAGS", f"-arch {name}")
    return MACHINES.get(name.lower(), name.lower())


class BuildKernels(build_ext):
    """Compiles each file with the flags of its own instruction set, several at a time."""

    def get_ext_filename(self, fullname):
        """Return a path without a Python version in it: the library has a C interface only."""
        return os.path.join(*fullname.split(".")) + SUFFIX

    def get_export_symbols(self, ext):
        """Return none: what the library exports is marked in its source."""
        return []

    def finalize_options(self):
        """Learn which machine the library is for."""
        super().finalize_options()
        self.machine = target_machine(self.plat_name)

    def build_extension(self, ext):
        """Compile what is older than its sources and link, or say why there will be no kernels."""
        library = Path(self.get_ext_fullpath(ext.name))
        try:
            objects = self.compiled(ext)
            library.parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(
                objects,
                str(library),
                build_temp=self.build_temp,
                target_lang="c++",
                extra_postargs=["-Wl,-z,defs"] if sys.platform == "linux" else [],
            )
        except (CCompilerError, DistutilsError) as error:
            if REQUIRED:
                raise
            library.unlink(missing_ok=True)
            print(
                "paceline: the native CPU kernels are skipped, no C++17 compiler could build them "
                f"({str(error).splitlines()[0][:160]}): everything works, but slower on the CPU. "
                "Install g++, clang++ or Visual C++ and run the installation again to have them.",
                file=sys.stderr,
            )

    def compiled(self, ext):
        """Return the object files of the sources that fit the machine."""
        if self.compiler.compiler_type == "msvc" and not self.compiler.initialized:
            self.compiler.initialize()  # not safe to leave to the threads
        newest_header = max(os.path.getmtime(path) for path in [__file__, *ext.depends])
        sources = [(path, flags) for path in ext.sources if (flags := self.flags(path)) is not None]

        def compile_one(source):
            path, flags = source
            (output,) = self.compiler.object_filenames([path], output_dir=self.build_temp)
            newest = max(newest_header, os.path.getmtime(path))
            if self.force or not os.path.exists(output) or os.path.getmtime(output) <= newest:
                self.compiler.compile([path], output_dir=self.build_temp, extra_postargs=flags)
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, sources))

    def flags(self, path):
        """Return the compiler's flags for one file, or None if its instruction set is another machine's."""
        word = Path(path).stem.rpartition("_")[2]
        msvc = self.compiler.compiler_type == "msvc"
        common = MSVC if msvc else UNIX
        if not any(word in sets for sets in SETS.values()):
            return common
        own = SETS.get(self.machine, {})
        if word not in own:
            return None
        return common + (MSVC_SETS.get(word, []) if msvc else own[word])


class PlatformWheel(bdist_wheel):
    """Tagged for any Python 3 of one platform, or for every platform where the kernels were not built."""

    def get_tag(self):
        """Return python, ABI and platform tag. Called after the build."""
        library = Path(self.get_finalized_command("build_ext").get_ext_filename(KERNELS.name))
        self.root_is_pure = not (Path(self.get_finalized_command("build").build_lib) / library).exists()
        return ("py3", "none", "any" if self.root_is_pure else super().get_tag()[2])


KERNELS = Extension(
    "paceline.runtime.ops.kernels",
    sorted(path.as_posix() for path in NATIVE.glob("*.cpp")),
    depends=sorted(path.as_posix() for path in [*NATIVE.glob("*.h"), NATIVE / "instruction_sets.json"]),
    language="c++",
    optional=not REQUIRED,
)

setup(ext_modules=[KERNELS], cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})

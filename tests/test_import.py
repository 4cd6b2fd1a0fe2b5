"""The house keeps its floors apart, and `import paceline` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "apps": "paceline",
    "export": "paceline.export",
    "runtime": "paceline.runtime",
    "memory": "paceline.memory",
}
TRAINERS = {
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "transformers",
    "optimum",
    "safetensors",
    "huggingface_hub",
    "gguf",
}
RUNS_ORT = {"paceline.runtime.model.ort"}
EXPORT_SEES = {
    "paceline.runtime.buckets",  # sizes of static graphs
    "paceline.runtime.adaptation.contract",  # a training step is checked by what will run it
    "paceline.runtime.adaptation.step",
    "paceline.runtime.bundle.bundle",  # heads learn from what a bundle itself writes, and become parts of it
    "paceline.runtime.bundle.constants",  # what a loader would refuse is not written
    "paceline.runtime.bundle.generation",
    "paceline.runtime.bundle.place",
    "paceline.runtime.bundle.precision",
    "paceline.runtime.bundle.survey",
    "paceline.runtime.bundle.whole_file",
    "paceline.runtime.bundle.wire",
    "paceline.runtime.drafters.draw",  # what predicts acceptance corrects its scores
    "paceline.runtime.request",
    "paceline.runtime.template.chat_template",  # the text side is opened by what must use it
    "paceline.runtime.text.parts",
    "paceline.runtime.text.text",
    "paceline.runtime.manifest",
    "paceline.runtime.native_calls",
    "paceline.runtime.part",
    "paceline.runtime.contracts",  # a target in two graphs is checked by a pass over a tree
    "paceline.runtime.model.first_half",
    "paceline.runtime.split",
    "paceline.runtime.tree",
    "paceline.runtime.model.contract",
    "paceline.runtime.model.graph",
    "paceline.runtime.model.device",  # a session is opened on a device
    "paceline.runtime.model.ort",
    "paceline.runtime.model.model",
    "paceline.runtime.model.passes",
    "paceline.runtime.model.static",  # static graphs are checked by what will run them
    "paceline.runtime.model.unrolled",
    "paceline.runtime.model.perplexity",
    "paceline.runtime.translation.mapping",  # what a draft model of another vocabulary shares is said
    "paceline.runtime.translation.spelling",
    "paceline.runtime.model.rope",  # the reference is torch with the runtime's frequencies
}

MOST_LINES = 400
LEVELS = (
    "buckets",
    "bundle.place bundle.whole_file channels drafters.words events law native_calls part request",
    "split",
    "arguments manifest options tree",
    "contracts detokenizer",
    "timeline",
    "beside bundle rules template",
    "model text",
    "translation",
    "adaptation control places",
    "drafters loop stats",
    "experience measuring profiles settings",
    "settle",
    "budget",
    "loaded",
    "target",
    "assemble probing",
    "answer overlapping",
    "session placement",
    "loading",
)
"""Rooms and files of runtime/: each may import what stands in a row above its own, and its own room."""


def level_of(module: str) -> tuple[int, str]:
    """The row of a module of the runtime, and the entry that it belongs to: the longest that names it."""
    name = module.removeprefix("paceline.runtime.")
    rows = {entry: row for row, entries in enumerate(LEVELS) for entry in entries.split()}
    named = [e for e in rows if name == e or name.startswith(f"{e}.")]
    assert named, f"{name} stands in no row of LEVELS: give it one"
    entry = max(named, key=len)
    return rows[entry], entry


@dataclass(frozen=True)
class Import:
    """`lazy`: inside a function, or for type checkers only."""

    module: str
    lazy: bool


def floor_of(module: str) -> str:
    for floor in ("paceline.runtime.ops", "paceline.runtime", "paceline.export", "paceline.memory"):
        if module == floor or module.startswith(f"{floor}."):
            return floor
    return "paceline"


def sources() -> Iterator[tuple[str, Path]]:
    for folder, package in FLOORS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(name.name, lazy) for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module == "paceline.runtime":
            yield from (Import(f"{child.module}.{name.name}", lazy) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield Import("." * child.level + (child.module or ""), lazy)
        within = lazy or is_for_checkers(child) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, within)


def forbidden(module: str, found: Import) -> str | None:
    """Why `module` may not import that, or None."""
    floor, target = floor_of(module), found.module
    if target.startswith("."):
        return "imports inside the project are absolute"
    top = target.partition(".")[0]
    if top in TRAINERS and floor != "paceline.export" and not (floor == "paceline" and found.lazy):
        return "only the exporter knows this library"
    if top == "onnxruntime" and module not in RUNS_ORT:
        return f"onnxruntime is imported in {', '.join(sorted(RUNS_ORT))} only"
    if top in {"tokenizers", "jinja2"} and floor == "paceline.runtime" and not _is_text(module):
        return "tokenizers and jinja2 stay behind text and template"
    if top in {"apps", "export", "runtime", "memory"}:
        return "packages are imported by their full name"
    if top != "paceline":
        return None
    if floor == floor_of(target) == "paceline.runtime" and module != "paceline.runtime":
        (own, here), (below, there) = level_of(module), level_of(target)
        if here != there and below >= own:
            return f"{here} stands below {there} or beside it"
    return _between_floors(floor, floor_of(target), target, found.lazy)


def _is_text(module: str) -> bool:
    return module.startswith(("paceline.runtime.text", "paceline.runtime.template"))


def _between_floors(floor: str, other: str, target: str, lazy: bool) -> str | None:
    allowed = {
        "paceline.memory": {"paceline.memory"},
        "paceline.runtime.ops": {"paceline.memory", "paceline.runtime.ops"},
        "paceline.runtime": {"paceline.memory", "paceline.runtime.ops", "paceline.runtime"},
        "paceline.export": {"paceline.memory", "paceline.runtime.ops", "paceline.export"},
        "paceline": {"paceline.memory", "paceline.runtime", "paceline"},
    }[floor]
    if other in allowed:
        return None
    if floor == "paceline.export" and target in EXPORT_SEES:
        return None
    if floor == "paceline" and other == "paceline.export" and lazy:
        return None
    return f"{floor} does not see {other}"


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_import_goes_down_or_stays_on_its_floor(module: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    broken = [f"{i.module}: {why}" for i in imports(tree) if (why := forbidden(module, i))]
    assert not broken


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("paceline.memory.cache", "import paceline.runtime.tree"),
        ("paceline.runtime.session", "import torch"),
        ("paceline.runtime.session", "import onnxruntime"),
        ("paceline.runtime.session", "from paceline.export.capture import capture"),
        ("paceline.runtime.session", "from paceline.run import run"),
        ("paceline.runtime.loop", "import tokenizers"),
        ("paceline.runtime.ops.attention", "from paceline.runtime.tree import TokenTree"),
        ("paceline.export.capture", "from paceline.runtime.loading import load"),
        ("paceline.bench", "from paceline.export.capture import capture"),
        ("paceline.run", "import torch"),
        ("paceline.run", "from . import flags"),
        ("paceline.run", "import memory"),
        ("paceline.runtime.contracts", "from paceline.runtime.control.trace import Trace"),
        ("paceline.runtime.template.scope", "from paceline.runtime.text.text import Text"),
        ("paceline.runtime.model.model", "from paceline.runtime.control.estimates import CostCurve"),
        ("paceline.runtime.rules.laws", "from paceline.runtime.bundle.bundle import Bundle"),
        ("paceline.runtime.drafters.kinds", "from paceline.runtime.loop import decode"),
        ("paceline.runtime.budget.planning", "from paceline.runtime.assemble import Workshop"),
        ("paceline.runtime.bundle.place", "from paceline.runtime.bundle.bundle import Bundle"),
        ("paceline.runtime.answer", "from paceline.runtime.session import Session"),
    ],
)
def test_the_table_catches_a_wrong_import(module: str, line: str) -> None:
    (found,) = imports(ast.parse(line))
    assert forbidden(module, found)


def test_an_import_inside_a_command_may_be_of_the_exporter() -> None:
    (found,) = imports(ast.parse("def f():\n    from paceline.export.capture import capture"))
    assert forbidden("paceline.bench", found) is None


def test_no_file_of_code_is_longer_than_a_few_screens() -> None:
    rooms = [ROOT / name for name in (*FLOORS, "tests")]
    code = [p for room in rooms for end in ("py", "h", "cpp") for p in room.rglob(f"*.{end}")]
    assert len(code) > 300
    assert [p for p in code if len(p.read_text().splitlines()) > MOST_LINES] == []


def test_the_package_list_equals_the_disk() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FLOORS.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(on_disk)


_LIGHT = """
import sys, time
begun = time.process_time()
import paceline
print(time.process_time() - begun)
print(*sorted({"numpy", "torch", "onnxruntime", "typer", "rich", "tokenizers"} & set(sys.modules)))
"""


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_paceline_is_quick_and_loads_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        taken, heavy = run_python(_LIGHT).split("\n")[:2]
        assert heavy == ""
        seconds.append(float(taken))
    assert min(seconds) < 0.1


def test_the_command_line_starts_without_numpy_and_onnxruntime() -> None:
    heavy = "{'numpy', 'torch', 'onnxruntime', 'rich'}"
    assert run_python(f"import sys, paceline.main; print({heavy} & set(sys.modules))").strip() == "set()"


def test_public_names_are_there_when_asked_for() -> None:
    import paceline

    assert paceline.__version__
    assert paceline.Sampling().temperature == 0.0
    assert set(paceline.__all__) <= set(dir(paceline))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        paceline.nonsense  # noqa: B018

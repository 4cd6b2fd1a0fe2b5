"""Whether two bundles are the same, byte for byte, but for the packages that made them."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.runtime.manifest import MANIFEST


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same(torchs: Path, plain: Path) -> None:
    """One made with torch, one without."""
    ours, theirs = contents(plain), contents(torchs)
    said, meant = json.loads(ours.pop(MANIFEST)), json.loads(theirs.pop(MANIFEST))
    assert "torch" in meant.pop("producer")
    assert "torch" not in said.pop("producer")
    assert said == meant
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []

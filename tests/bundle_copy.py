"""A copy of the embedded bundle to be spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.runtime.manifest import BundleError

Edit = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Edit) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message

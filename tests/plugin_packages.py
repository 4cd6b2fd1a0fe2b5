"""Which plugin packages are installed, for tests that need one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from paceline.runtime.model.providers import PROVIDERS


def needs_plugin(word: str) -> pytest.MarkDecorator:
    """Skip in one line where the package of a device word is not there."""
    provider = PROVIDERS[word]
    return pytest.mark.skipif(
        find_spec(provider.module) is None, reason=f"{provider.package} is not installed"
    )

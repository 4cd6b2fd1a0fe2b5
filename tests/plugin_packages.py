"""Which plugin providers have a device here, for tests that need one."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest

from paceline.runtime.model.device import find_device
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.providers import PROVIDERS


def needs_plugin(word: str) -> pytest.MarkDecorator:
    """Skip in one line where the package of a device word is not there, or has no device on this machine."""
    lack = _lack(word)
    return pytest.mark.skipif(lack is not None, reason=lack or "")


@cache
def _lack(word: str) -> str | None:
    provider = PROVIDERS[word]
    if find_spec(provider.module) is None:
        return f"{provider.package} is not installed"
    try:
        find_device(word)
    except DeviceError as error:
        return str(error)
    return None

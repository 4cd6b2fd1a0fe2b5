"""Which plugin providers have a device here, for tests that need one."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import pytest

from paceline.runtime.model.device import find_device
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.providers import PROVIDERS
from paceline.runtime.probing.trying import probed


def needs_plugin(word: str) -> pytest.MarkDecorator:
    """Skip in one line where the package of a device word is not there, or has no device on this machine."""
    lack = lack_of(word)
    return pytest.mark.skipif(bool(lack), reason=lack)


@cache
def lack_of(word: str) -> str:
    """Why a device cannot be used here, "" where it can: a display adapter, for one, may have no driver."""
    provider = PROVIDERS[word]
    if find_spec(provider.module) is None:
        return f"{provider.package} is not installed"
    try:
        find_device(word)
    except DeviceError as error:
        return str(error)
    return probed(word).problem

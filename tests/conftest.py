"""Nothing of a test run reaches the user's own caches."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("PACELINE_CACHE", tempfile.mkdtemp(prefix="paceline-tests-"))

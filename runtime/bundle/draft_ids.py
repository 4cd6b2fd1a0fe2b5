"""The ids of the target that a head drafts: its own vocabulary, in a file of the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.runtime.manifest import BundleError, Part

Ids = npt.NDArray[np.int64]


def read_ids(path: Path, part: Part, vocab: int) -> Ids:
    """int64[part.vocab]: what the columns of a head's scores stand for, ascending. vocab: the target's tokens.

    Raises BundleError for a file that does not hold that.
    """
    try:
        ids = np.fromfile(path, "<u4").astype(np.int64)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if len(ids) != part.vocab:
        raise BundleError(
            f"{path} holds {len(ids)} tokens and not {part.vocab}: fetch or export the bundle again"
        )
    if not (ids[1:] > ids[:-1]).all():
        raise BundleError(f"{path} holds tokens that do not ascend: export the head again")
    if ids[-1] >= vocab:
        raise BundleError(
            f"{path} holds the token {ids[-1]}, and the target has {vocab}: export the head for this target"
        )
    return ids

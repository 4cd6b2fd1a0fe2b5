"""Tensors of a head's file in safetensors, read with suspicion."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.export.errors import ExportError, first_line
from paceline.export.heads.config import Shapes
from paceline.export.passes import Floats

Ids = npt.NDArray[np.int64]
_FLOATS = ("F32", "F16", "BF16")
_WHOLE = ("I32", "I64")
_SHOWN = 6


def shapes_in(path: Path) -> Shapes:
    """The shape of every tensor, by its header alone. Raises ExportError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ExportError(f"{path.parent} has no {path.name}: train or fetch the head again")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({first_line(error)}): train or fetch it again") from None


def load_tensors(
    path: Path, shapes: Shapes, whole: Collection[str]
) -> tuple[dict[str, Floats], dict[str, Ids]]:
    """The tensors of these names: float32, and of `whole` int64.

    Raises ExportError for other types than floats and whole numbers, and for NaN and infinity.
    """
    from safetensors import SafetensorError, safe_open

    weights, numbers = dict[str, Floats](), dict[str, Ids]()
    try:
        with safe_open(path, framework="numpy") as file:
            for name in shapes:
                kinds = _WHOLE if name in whole else _FLOATS
                if (kind := file.get_slice(name).get_dtype()) not in kinds:
                    raise ExportError(f"{path}: {name} holds {kind} and not {' or '.join(kinds)}")
                if name in whole:
                    numbers[name] = file.get_tensor(name).astype(np.int64)
                else:
                    weights[name] = file.get_tensor(name).astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({first_line(error)}): train or fetch it again") from None
    for name, values in weights.items():
        if count := int(values.size - np.isfinite(values).sum()):
            raise ExportError(
                f"{path}: {name} holds {count} of {values.size} numbers that are NaN or infinite: train it again, "
                "or take a checkpoint from before"
            )
    return weights, numbers


def check_shapes(path: Path, meant: Shapes, held: Shapes) -> None:
    """Raise ExportError where tensors are missing, unknown or of another shape; all of a kind are named at once."""
    said = [
        f"{what} {_named(names)}"
        for what, names in (
            ("it lacks", sorted(meant.keys() - held.keys())),
            ("it has besides", sorted(held.keys() - meant.keys())),
        )
        if names
    ]
    wrong = [
        f"{name} {list(held[name])} in place of {list(shape)}"
        for name, shape in meant.items()
        if held.get(name, shape) != shape
    ]
    if wrong:
        said.append(f"other shapes: {_named(wrong)}")
    if said:
        raise ExportError(
            f"{path} does not have the weights that its config.json describes: {'; '.join(said)}"
        )


def check_ascending(where: Path | str, name: str, ids: Ids, vocab: int) -> None:
    """Raise ExportError for what is no vocabulary of a head or an exit."""
    if ids[0] < 0 or ids[-1] >= vocab or (np.diff(ids) <= 0).any():
        raise ExportError(f"{where}: {name} is not a list of ascending ids below {vocab}: train it again")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:60] for name in names[:_SHOWN]) + more

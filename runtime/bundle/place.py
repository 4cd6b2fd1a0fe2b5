"""Which links a folder of model files may hold."""

from __future__ import annotations

from pathlib import Path


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, lies outside `root` (resolved).

    A model hub's cache keeps `snapshots/REVISION` as links into the `blobs` beside `snapshots`; these count as inside.
    """
    inside = path.resolve()
    if inside.is_relative_to(root):
        return False
    snapshot = next((p for p in (root, *root.parents) if p.parent.name == "snapshots"), None)
    return snapshot is None or not inside.is_relative_to(snapshot.parent.parent / "blobs")

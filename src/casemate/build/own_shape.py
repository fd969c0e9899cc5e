"""A session has the shape of its sandbox and no other: its memory cannot be made again, nor made larger."""

from __future__ import annotations

from collections.abc import Sequence

from casemate import errors
from casemate.sandbox import Shape
from casemate.storage import SnapshotRow, VersionRow


def own_row(version: VersionRow, found: Sequence[SnapshotRow]) -> SnapshotRow:
    """The one snapshot a session is. Raises StateConflict while it is being made, ImageBroken where it is gone."""
    if version.state != "ready":
        raise errors.StateConflict(
            f"image {version.reference} is {version.state}: it was not kept, or not yet", hint="casemate snapshots ls"
        )
    for row in found:
        if row.state == "ready":
            return row
    raise errors.ImageBroken(f"the snapshot of {version.reference} is gone", hint="restore it from a backup")


def shape_of(row: SnapshotRow) -> Shape:
    return Shape(row.vcpus, row.memory_mib, row.disk_mib)


def check_own_shape(version: VersionRow, own: Shape, asked: Shape) -> None:
    """Raises InvalidSpec where another one is asked for."""
    if asked != own:
        raise errors.InvalidSpec(
            f"{version.reference} is a sandbox as it was, with {said(own)}: it has no other shape",
            hint="ask for no shape, or for this one",
        )


def said(shape: Shape) -> str:
    return f"{shape.vcpus} vCPU, {shape.memory_mib} MiB memory, {shape.disk_mib} MiB disk"

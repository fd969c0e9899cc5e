"""The VMM behind a PID namespace: whose pid the host's /proc has, and which bubblewrap does not tell."""

from __future__ import annotations

import os
from pathlib import Path

APPROVED = "/memfd:"  # how the kernel names what the jailer is executed from (host/approval.py)


def find_vmm(first: int, uid: int) -> int | None:
    """The one child of *first*, the namespace's first process, when it has become the VMM; None until then.

    It is that once it has the VMM's uid and no longer runs the jailer's code: that the jailer changes just before.
    """
    try:
        children = _children(first)
        if len(children) != 1:
            return None
        process = Path(f"/proc/{children[0]}")
        lines = (process / "status").read_text().splitlines()
        uids = {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}
        if uids != {uid} or os.readlink(process / "exe").startswith(APPROVED):
            return None
    except (FileNotFoundError, ProcessLookupError):  # one of them has just ended
        return None
    return children[0]


def _children(pid: int) -> list[int]:
    """Of one thread that has not more."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        if not Path(f"/proc/{pid}/task/{pid}").exists():
            raise
    # A kernel that was built without that file
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == pid]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None

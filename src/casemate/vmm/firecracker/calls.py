"""Every call of Firecracker's API that we make, as data. Pure: nothing here talks to anybody.

Only the fields that we set; their names, types and bounds are those of the API description of each release that we
run (``src/firecracker/swagger/firecracker.yaml`` there), and tests/unit/vmm holds every call against them.
All paths are those the VMM sees: inside its jail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from casemate.vmm.firecracker.versions import PINNED, Version

GUEST_CID = 3  # the lowest that a guest may have; each guest is alone on its socket, so all have the same
TRACKING_RENAMED = Version(1, 13, 0)  # what snapshot/load calls track_dirty_pages had another name before

Method = Literal["GET", "PUT", "PATCH"]
State = Literal["Paused", "Resumed"]
SnapshotKind = Literal["Full", "Diff"]
Level = Literal["Off", "Error", "Warning", "Info", "Debug", "Trace"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request. *body* is JSON, or nothing."""

    method: Method
    path: str
    body: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Bucket:
    """*size* tokens, full again after *refill_ms*; *burst* more at the start, once."""

    size: int
    refill_ms: int
    burst: int = 0

    def to_json(self) -> dict[str, int]:
        burst = {"one_time_burst": self.burst} if self.burst else {}
        return {"size": self.size, "refill_time": self.refill_ms} | burst


@dataclass(frozen=True, slots=True)
class Limiter:
    """How fast a device is: in bytes, in operations, or both. A guest that wants more waits."""

    bandwidth: Bucket | None = None
    ops: Bucket | None = None

    def to_json(self) -> dict[str, Any]:
        buckets = {"bandwidth": self.bandwidth, "ops": self.ops}
        return {name: bucket.to_json() for name, bucket in buckets.items() if bucket is not None}


# ------------------------------------------------------------------------------------------------- asking


def version() -> Call:
    """Answers ``{"firecracker_version": "1.15.1"}``."""
    return Call("GET", "/version")


def instance() -> Call:
    """Answers ``{"id", "state": "Not started" | "Running" | "Paused", "vmm_version", "app_name"}``."""
    return Call("GET", "/")


# ------------------------------------------------------------------------------------------- before the guest runs


def machine_config(vcpus: int, memory_mib: int, track_dirty_pages: bool = False) -> Call:
    body = {"vcpu_count": vcpus, "mem_size_mib": memory_mib, "track_dirty_pages": track_dirty_pages}
    return Call("PUT", "/machine-config", body)


def boot_source(kernel: str, initrd: str | None, cmdline: str) -> Call:
    """*kernel* is an uncompressed ELF."""
    body = {"kernel_image_path": kernel, "boot_args": cmdline}
    return Call("PUT", "/boot-source", body | ({"initrd_path": initrd} if initrd is not None else {}))


def drive(name: str, path: str, writable: bool, limiter: Limiter | None = None, is_root: bool = False) -> Call:
    """The guest sees the drives in the order of their calls. Written data is flushed when the guest asks for it."""
    body: dict[str, Any] = {"drive_id": name, "path_on_host": path, "is_root_device": is_root}
    body |= {"is_read_only": not writable, "cache_type": "Writeback" if writable else "Unsafe"}
    return Call("PUT", f"/drives/{name}", body | _limited(limiter))


def vsock(path: str) -> Call:
    """The VMM listens at *path* for what is to reach the guest."""
    return Call("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": path})


def entropy(limiter: Limiter | None = None) -> Call:
    return Call("PUT", "/entropy", _limited(limiter))


def logger(path: str, level: Level) -> Call:
    """To the file or the named pipe *path*; up to 1.13 it has to be there."""
    return Call("PUT", "/logger", {"log_path": path, "level": level, "show_level": True, "show_log_origin": False})


def metrics(path: str) -> Call:
    """To the file or the named pipe *path*, one line of JSON a minute and with each ``flush_metrics``."""
    return Call("PUT", "/metrics", {"metrics_path": path})


def start() -> Call:
    """The guest runs from here on."""
    return Call("PUT", "/actions", {"action_type": "InstanceStart"})


# ------------------------------------------------------------------------------------------------- while it runs


def flush_metrics() -> Call:
    """Refused before the guest runs."""
    return Call("PUT", "/actions", {"action_type": "FlushMetrics"})


def set_state(state: State) -> Call:
    """Refused before the guest runs; what it has already is taken."""
    return Call("PATCH", "/vm", {"state": state})


def save(kind: SnapshotKind, state: str, memory: str) -> Call:
    """The paused machine's device state into the file *state*, its memory into *memory*; ``Diff``: what it has written.

    The guest then hears of a reset of its vsock: no stream of it survives.
    """
    return Call("PUT", "/snapshot/create", {"snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory})


def load(state: str, memory: str, track_dirty_pages: bool, resume: bool = False, *, version: Version = PINNED) -> Call:
    """A clone, in a VMM that has no machine yet; *memory* is mapped copy-on-write and never written.

    *version*: of the VMM that is to take the call; older ones call the tracking by another name.
    """
    tracking = "track_dirty_pages" if version >= TRACKING_RENAMED else "enable_diff_snapshots"
    backend = {"backend_type": "File", "backend_path": memory}
    body = {"snapshot_path": state, "mem_backend": backend, tracking: track_dirty_pages, "resume_vm": resume}
    return Call("PUT", "/snapshot/load", body)


def limit_drive(name: str, limiter: Limiter) -> Call:
    """How fast a drive of a machine that is there may be from now on."""
    return Call("PATCH", f"/drives/{name}", {"drive_id": name, "rate_limiter": limiter.to_json()})


def _limited(limiter: Limiter | None) -> dict[str, Any]:
    return {} if limiter is None else {"rate_limiter": limiter.to_json()}

"""What was asked for (SandboxSpec) and what is (SandboxInfo): two types, both frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from casemate.errors import InvalidSpec, NotSupported
from casemate.sandbox.ids import is_name
from casemate.sandbox.states import State
from casemate.vmm import Accelerator, Isolation

OnIdle = Literal["kill", "keep", "suspend"]
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_ENV_BYTES = 32_768  # the hand-shake carries it in one frame of 64 KiB
MAX_USER_CHARS, MAX_CWD_CHARS = 256, 4096
MAX_LABELS = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What a snapshot is made for; a VMM cannot restore it into another."""

    vcpus: int
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class ShapeWish:
    """What of a shape is asked for; the rest is as the image or the settings have it."""

    vcpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None

    def filled(self, default: Shape) -> Shape:
        return Shape(
            self.vcpus or default.vcpus, self.memory_mib or default.memory_mib, self.disk_mib or default.disk_mib
        )


def check_shape(vcpus: int | None, memory_mib: int | None, disk_mib: int | None) -> None:
    """Raises InvalidSpec for what no machine is made with; None is what the settings say."""
    _within("vcpus", vcpus, 1, 32)
    _within("memory_mib", memory_mib, 128, 65_536)
    _within("disk_mib", disk_mib, 64, 1_048_576)


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A checked wish. Raises InvalidSpec or NotSupported when made from anything else."""

    image: str = "python"
    name: str | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_duration_s: float | None = None
    idle_timeout_s: float | None = 900
    on_idle: OnIdle = "kill"
    park_after_s: float | None = 5  # frozen when it had nothing to do for so long; None: never
    auto_resume: bool = True  # any call resumes it when it is suspended
    network: str = "none"
    attached: bool = False
    create_timeout_s: float = 60
    build: bool = True  # make the snapshot of a shape that has none

    def __post_init__(self) -> None:
        if self.network != "none":
            raise NotSupported(f"network={self.network!r}: only 'none' is served", hint='use network="none"')
        if self.name is not None and not is_name(self.name):
            raise InvalidSpec(
                f"name {self.name[:80]!r} is not valid",
                hint="up to 63 of a-z, 0-9 and -, not starting with -",
            )
        if self.on_idle not in ("kill", "keep", "suspend"):
            raise NotSupported(f"on_idle={self.on_idle!r} is not served", hint="use 'kill', 'keep' or 'suspend'")
        check_shape(self.vcpus, self.memory_mib, self.disk_mib)
        _within("max_duration_s", self.max_duration_s, 0.1, 30 * 86_400)
        _within("idle_timeout_s", self.idle_timeout_s, 0.1, 30 * 86_400)
        _within("park_after_s", self.park_after_s, 0.1, 30 * 86_400)
        _within("create_timeout_s", self.create_timeout_s, 0.1, 3600)
        _check_env(self.env)
        _check_text("user", self.user, MAX_USER_CHARS)
        _check_text("cwd", self.cwd, MAX_CWD_CHARS)
        _check_labels(self.labels)


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidSpec(f"{name} is {value}; it must be from {low:g} to {high:g}")


def _check_env(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise InvalidSpec(f"env: {name[:80]!r} is not a variable a program can be given")
    if sum(len(n) + len(v.encode()) for n, v in env.items()) > MAX_ENV_BYTES:
        raise InvalidSpec(f"env is over {MAX_ENV_BYTES} bytes", hint="write what is large to a file instead")


def _check_text(name: str, value: str | None, most: int) -> None:
    """What the guest would break off the hand-shake for is said here, where it costs no machine."""
    if value is not None and ("\0" in value or not 0 < len(value) <= most):
        raise InvalidSpec(f"{name} {value[:80]!r} is not valid", hint=f"1 to {most} characters, no NUL")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise InvalidSpec(f"{len(labels)} labels; at most {MAX_LABELS}")
    for name, value in labels.items():
        if not _LABEL.fullmatch(name) or len(value) > 256:
            raise InvalidSpec(f"label {name[:80]!r}: a key has up to 63 of A-Z a-z 0-9 . _ / -, a value 256")
        if name.startswith("casemate/"):
            raise InvalidSpec(f"label {name!r}: the prefix casemate/ is ours")


@dataclass(frozen=True, slots=True)
class StateReason:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds since the create was accepted; None until it happened."""

    restore_ms: float | None = None
    first_answer_ms: float | None = None
    admitted_ms: float | None = None  # what it may come to need was set aside


@dataclass(frozen=True, slots=True)
class SuspendedFacts:
    """A suspended sandbox on the disk. *written_bytes*: blocks of its disk beyond the image's.

    *pause_ms*: from the stop of its vCPUs until all was stored; *took_ms* from the request on, until its memory was
    given back.
    """

    at: float
    stored_bytes: int
    dirty_bytes: int  # pages that its guest wrote, as the kernel counts them
    written_bytes: int
    pause_ms: float
    took_ms: float


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox as it is at one moment; ``meta.json`` and the API show just this."""

    id: str
    tenant: str
    name: str | None
    image: str
    snapshot: str
    state: State
    isolation: Isolation
    accelerator: Accelerator
    vcpus: int
    memory_mib: int
    disk_mib: int
    labels: Mapping[str, str]
    created_at: float
    updated_at: float
    idle_timeout_s: float | None
    on_idle: OnIdle
    max_duration_s: float | None
    network: str
    attached: bool
    state_reason: StateReason | None = None
    timings: Timings = field(default_factory=Timings)
    pid: int | None = None
    attestation: Mapping[str, Any] | None = None  # as Attestation.to_json has it; None until it ran
    park_after_s: float | None = None
    auto_resume: bool = True
    suspended: SuspendedFacts | None = None  # only while it is suspended
    forked_from: str | None = None  # the sandbox whose copy it began as
    image_tenant: str | None = None  # whose the image is; None: made by a version that did not write it down

    def terminated(self, reason: StateReason) -> SandboxInfo:
        """The same sandbox after an end nobody was there to record."""
        return replace(self, state=State.TERMINATED, state_reason=reason, pid=None, suspended=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"state": self.state.value}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what this version did not write."""
        reason, suspended = body["state_reason"], body.get("suspended")
        return cls(
            **{
                **body,
                "state": State(body["state"]),
                "state_reason": StateReason(**reason) if reason else None,
                "timings": Timings(**body["timings"]),
                "suspended": SuspendedFacts(**suspended) if suspended else None,
            }
        )

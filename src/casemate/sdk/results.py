"""What the SDK hands back: frozen values, parsed once from the daemon's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, assert_never

from casemate.errors import CasemateError

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Exited:
    """The program ended by itself."""

    code: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal ended the program: 9 is KILL, 15 TERM."""

    signal: int


@dataclass(frozen=True, slots=True)
class TimedOut:
    """It ran longer than its time-out and was killed with everything it had started."""

    after_s: float


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The guest had no memory left for it and killed it."""


End = Exited | Signaled | TimedOut | OutOfMemory


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a program wrote; *offset* counts the stream's bytes from its start."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecEnd:
    """How a program ended and what it took; a figure the guest could not tell is None."""

    end: End
    duration_ms: float
    cpu_ms: float | None
    peak_memory_mib: float | None


@dataclass(frozen=True, slots=True)
class ExecResult:
    """A finished command. A program that failed is a result: look at ``end``.

    Of each stream at most *max_output_bytes* are kept, the first half and the last;
    ``truncated_bytes`` says how many went between them, both streams together.
    """

    end: End
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    truncated_bytes: int
    duration_ms: float
    cpu_ms: float | None
    peak_memory_mib: float | None

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.end == Exited(0)

    def to_json(self) -> dict[str, Any]:
        """All of it, the output as text."""
        return {
            "end": end_to_json(self.end),
            "stdout": self.stdout,
            "stderr": self.stderr,
            "truncated_bytes": self.truncated_bytes,
            "duration_ms": self.duration_ms,
            "cpu_ms": self.cpu_ms,
            "peak_memory_mib": self.peak_memory_mib,
        }

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")


class CommandFailed(Exception):
    """Raised by ``run(…, check=True)`` only: the command did not exit with 0. ``result`` has all of it."""

    def __init__(self, result: ExecResult) -> None:
        last = result.stderr.rstrip().rpartition("\n")[2]
        super().__init__(f"the command ended with {result.end}" + (f": {last}" if last else ""))
        self.result = result


@dataclass(frozen=True, slots=True)
class Logs:
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """*type* is file, dir, symlink or other; *mode* the permission bits."""

    name: str
    path: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> FileEntry:
        return cls(**_known(cls, body))


@dataclass(frozen=True, slots=True)
class Listening:
    """A TCP port that a program of the guest's user *uid* listens on."""

    port: int
    address: str
    uid: int

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Listening:
        return cls(**_known(cls, body))


@dataclass(frozen=True, slots=True)
class StateReason:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds since the daemon accepted the create; None until it happened."""

    restore_ms: float | None = None
    first_answer_ms: float | None = None
    admitted_ms: float | None = None


@dataclass(frozen=True, slots=True)
class SuspendedFacts:
    """What is stored of a suspended sandbox since *at*, beside what its guest had changed.

    *dirty_bytes* of memory, *written_bytes* of disk. *pause_ms*: how long it stood still until all was stored;
    *took_ms*: from the request on until its memory was given back.
    """

    at: float
    stored_bytes: int
    dirty_bytes: int
    written_bytes: int
    pause_ms: float
    took_ms: float

    @property
    def ratio(self) -> float | None:
        """Stored bytes by changed bytes; None where nothing had changed."""
        changed = self.dirty_bytes + self.written_bytes
        return self.stored_bytes / changed if changed else None


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox as the daemon described it at one moment.

    *parked*: frozen until the next call; its clocks go on. *forked_from*: the id of what it is a copy of.
    """

    id: str
    name: str | None
    image: str
    state: str
    state_reason: StateReason | None
    isolation: str
    accelerator: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    labels: Mapping[str, str]
    created_at: float
    updated_at: float
    idle_timeout_s: float | None
    on_idle: str
    max_duration_s: float | None
    network: str
    attached: bool
    timings: Timings
    pid: int | None
    park_after_s: float | None
    auto_resume: bool
    suspended: SuspendedFacts | None
    parked: bool
    forked_from: str | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SandboxInfo:
        reason, timings, stored = body.get("state_reason"), body.get("timings") or {}, body.get("suspended")
        parsed = {
            "state_reason": StateReason(**_known(StateReason, reason)) if reason else None,
            "timings": Timings(**_known(Timings, timings)),
            "suspended": SuspendedFacts(**_known(SuspendedFacts, stored)) if stored else None,
            "forked_from": body.get("forked_from"),  # a daemon that cannot fork does not say it
            "raw": body,
        }
        return cls(**_known(cls, {**body, **parsed}))


def _known(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Just the fields this version knows: a newer daemon may say more, an older one must say no less."""
    names = [f.name for f in fields(kind)]
    if missing := [name for name in names if name not in body]:
        raise CasemateError(f"the daemon's answer has no {missing[0]!r}", hint="is CASEMATE_URL a Casemate daemon?")
    return {name: body[name] for name in names}


def end_from_json(body: Mapping[str, Any]) -> End:
    match body.get("kind"):
        case "exited":
            return Exited(int(body["code"]))
        case "signaled":
            return Signaled(int(body["signal"]))
        case "timed-out":
            return TimedOut(float(body["after_s"]))
        case "out-of-memory":
            return OutOfMemory()
    raise CasemateError(f"the daemon says a program ended in a way this version does not know: {body}")


def end_to_json(end: End) -> dict[str, Any]:
    match end:
        case Exited(code):
            return {"kind": "exited", "code": code}
        case Signaled(number):
            return {"kind": "signaled", "signal": number}
        case TimedOut(after_s):
            return {"kind": "timed-out", "after_s": after_s}
        case OutOfMemory():
            return {"kind": "out-of-memory"}
        case _:
            assert_never(end)


def exec_end_from_json(event: Mapping[str, Any]) -> ExecEnd:
    return ExecEnd(
        end_from_json(event["end"]),
        float(event["duration_ms"]),
        event.get("cpu_ms"),
        event.get("peak_memory_mib"),
    )

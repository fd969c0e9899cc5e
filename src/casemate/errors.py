"""The whole error tree on one screen, ordered by who must act.

    CasemateError ─ RequestError   the caller changes something
                  ├ CapacityError  wait, try again
                  ├ HostError      the operator fixes the host
                  ├ VmmError       the VMM refused or died
                  └ GuestError     the agent failed or lied

Each class has a stable ``code``; each instance a ``hint`` (what to do), a ``retry``
(whether doing it again is safe) and ``evidence`` (what one would go looking for).
A user's program that fails is a result, never one of these. Standard library only:
the agent inside the guest imports this file too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, ClassVar


class Retry(Enum):
    """Whether the same call may simply be made again. UNKNOWN: it may have taken effect."""

    SAFE = "safe"
    NEVER = "never"
    UNKNOWN = "unknown"


class CasemateError(Exception):
    """Anything Casemate itself reports."""

    code: ClassVar[str] = "internal"
    default_retry: ClassVar[Retry] = Retry.NEVER

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry: Retry | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry = retry or self.default_retry
        self.evidence = dict(evidence or {})

    def __str__(self) -> str:
        return f"{self.message} — {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retry": self.retry.value,
            "evidence": self.evidence,
        }


class RequestError(CasemateError):
    code = "bad-request"


class InvalidSpec(RequestError):
    code = "invalid-spec"


class Unauthorized(RequestError):
    """No credential, or one that is not, or no longer, good."""

    code = "unauthorized"


class Forbidden(RequestError):
    code = "forbidden"


class NotFound(RequestError):
    code = "not-found"


class NotSupported(RequestError):
    code = "not-supported"


class StateConflict(RequestError):
    code = "state-conflict"


class IdempotencyConflict(RequestError):
    """An Idempotency-Key that was used for another request, or for one whose answer cannot be repeated."""

    code = "idempotency-conflict"


class SnapshotMissing(RequestError):
    """There is no snapshot of the shape that was asked for, and none was to be built."""

    code = "snapshot-missing"


class QuotaExceeded(RequestError):
    code = "quota-exceeded"


class FileRefused(RequestError):
    """The guest's kernel refused a file operation; ``evidence["errno"]`` has its name, as ENOENT."""

    code = "file-refused"


class ExecRefused(RequestError):
    """The guest could not start the program; ``evidence["errno"]`` has the kernel's reason."""

    code = "exec-refused"


class ArchiveRefused(RequestError):
    """An archive is broken, or holds what may not be unpacked."""

    code = "archive-refused"


class PortRefused(RequestError):
    """Nothing in the guest takes a connection to that port; ``evidence["errno"]`` has the kernel's reason."""

    code = "port-refused"


class CapacityError(CasemateError):
    code = "capacity"
    default_retry = Retry.SAFE


class PoolExhausted(CapacityError):
    code = "pool-exhausted"


class HostFull(CapacityError):
    code = "host-full"


class RateLimited(CapacityError):
    code = "rate-limited"


class HostError(CasemateError):
    code = "host-error"


class ToolMissing(HostError):
    code = "tool-missing"


class ToolFailed(HostError):
    """A program of the host's failed; evidence has its argv, exit status and last lines."""

    code = "tool-failed"


class KvmUnavailable(HostError):
    code = "kvm-unavailable"


class LeakedResource(HostError):
    """Something could not be released; it and what it stands on are kept for the sweep."""

    code = "leaked-resource"


class DaemonUnavailable(HostError):
    code = "daemon-unavailable"
    default_retry = Retry.UNKNOWN


class DaemonRunning(HostError):
    """Another daemon holds the home's lock; it is the one to talk to."""

    code = "daemon-running"


class ImageBroken(HostError):
    """A stored artifact is missing or its digest is wrong."""

    code = "image-broken"


class SealBroken(HostError):
    """What is stored of a machine does not carry this host's MAC; it is never given to a VMM."""

    code = "seal-broken"


class Unfit(HostError):
    """A stored machine does not fit what is here: VMM, processor, kernel, agent, disks; evidence has each misfit."""

    code = "unfit"


class VmmError(CasemateError):
    code = "vmm-error"


class VmmRefused(VmmError):
    code = "vmm-refused"


class VmmExited(VmmError):
    code = "vmm-exited"


class NotAttested(VmmError):
    """The kernel's account of a VMM is not what was asked for; evidence has the account. Nothing was run in it."""

    code = "not-attested"


class BootTimeout(VmmError):
    code = "boot-timeout"


class GuestError(CasemateError):
    code = "guest-error"


class AgentSilent(GuestError):
    code = "agent-silent"
    default_retry = Retry.UNKNOWN


class ProtocolViolation(GuestError):
    """Bytes from a guest that no honest agent sends. The machine is killed, the event audited."""

    code = "protocol-violation"


def every_error(root: type[CasemateError] = CasemateError) -> Iterator[type[CasemateError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def from_json(body: Mapping[str, Any]) -> CasemateError:
    """The error another process wrote with ``to_json``, or as problem details (RFC 9457: ``detail``).

    An unknown code is a plain CasemateError.
    """
    kind = next((k for k in every_error() if k.code == body.get("code")), CasemateError)
    try:
        retry = Retry(body.get("retry"))
    except ValueError:
        retry = Retry.UNKNOWN
    evidence = body.get("evidence")
    return kind(
        str(body.get("message") or body.get("detail") or "no message"),
        hint=str(body.get("hint", "")),
        retry=retry,
        evidence=evidence if isinstance(evidence, dict) else {},
    )

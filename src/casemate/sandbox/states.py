"""The states of a sandbox and every way from one to another, as one table.

An action is what somebody wants; an edge is what happened. Each (state, action) pair has an
edge or a named refusal: ``go`` never guesses.
"""

from __future__ import annotations

from enum import StrEnum

from casemate.errors import StateConflict


class State(StrEnum):
    READY = "ready"  # a pool member, owned by the pool, not listed
    PENDING = "pending"
    RUNNING = "running"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class Action(StrEnum):
    CLAIM = "claim"
    STARTED = "started"
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    SUSPEND_FAILED = "suspend-failed"
    RESUME = "resume"
    RESUMED = "resumed"
    RESUME_FAILED = "resume-failed"
    SNAPSHOT = "snapshot"
    TERMINATE = "terminate"
    TERMINATED = "terminated"
    USE = "use"


class Reason(StrEnum):
    """Why a sandbox is ``terminated``; a sentence goes with it."""

    EXITED = "exited"
    KILLED = "killed"
    MAX_DURATION = "max-duration"
    IDLE = "idle"
    BOOT_FAILED = "boot-failed"
    VMM_DIED = "vmm-died"
    PROTOCOL_VIOLATION = "protocol-violation"
    GUEST_SILENT = "guest-silent"
    DAEMON_STOPPED = "daemon-stopped"
    DAEMON_DIED = "daemon-died"
    HOST_REBOOTED = "host-rebooted"
    HOOK_FAILED = "hook-failed"
    INTERNAL = "internal"  # a fault of ours


_S, _A = State, Action
EDGES: dict[tuple[State, Action], State] = {
    (_S.READY, _A.CLAIM): _S.PENDING,
    (_S.PENDING, _A.STARTED): _S.RUNNING,
    (_S.RUNNING, _A.USE): _S.RUNNING,
    (_S.RUNNING, _A.SNAPSHOT): _S.RUNNING,
    (_S.RUNNING, _A.SUSPEND): _S.SUSPENDING,
    (_S.SUSPENDING, _A.SUSPENDED): _S.SUSPENDED,
    (_S.SUSPENDING, _A.SUSPEND_FAILED): _S.RUNNING,
    (_S.SUSPENDED, _A.RESUME): _S.RESUMING,
    (_S.RESUMING, _A.RESUMED): _S.RUNNING,
    (_S.RESUMING, _A.RESUME_FAILED): _S.SUSPENDED,
    (_S.TERMINATING, _A.TERMINATE): _S.TERMINATING,
    (_S.TERMINATING, _A.TERMINATED): _S.TERMINATED,
    (_S.TERMINATED, _A.TERMINATE): _S.TERMINATED,
    **{
        (state, _A.TERMINATE): _S.TERMINATING
        for state in (_S.READY, _S.PENDING, _S.RUNNING, _S.SUSPENDING, _S.SUSPENDED, _S.RESUMING)
    },
}
LIVE = frozenset(State) - {State.TERMINATED}


def go(state: State, action: Action, what: str = "sandbox") -> State:
    """The state after *action*. Raises StateConflict, by name, where the table has no edge."""
    try:
        return EDGES[state, action]
    except KeyError:
        raise StateConflict(
            f"cannot {action.value} {what}: it is {state.value}",
            hint="create a new sandbox" if state is State.TERMINATED else "wait until it is running",
        ) from None

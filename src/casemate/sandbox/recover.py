"""What an earlier daemon left is found by name, removed and told; the folders are the truth, the index follows.

A sweeper looks for one kind of thing. They run in the order they are given: first what runs, then what it stood
on. What a sweeper could not remove is told as well, and the folders that it may still stand on are kept.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import structlog

from casemate.audit import EventKind, Trail
from casemate.errors import CasemateError, ImageBroken, StateConflict
from casemate.host import remove_folder
from casemate.sandbox.ids import is_id
from casemate.sandbox.index import Index
from casemate.sandbox.meta import Record, boot_id, read_meta, write_meta
from casemate.sandbox.spec import SandboxInfo, StateReason, SuspendedFacts
from casemate.sandbox.states import Reason, State
from casemate.sandbox.suspended import Place, Suspended

log = structlog.get_logger()
Sweeper = Callable[[], Awaitable[Sequence[str]]]
SWEEP_S = 30.0


@dataclass(slots=True)
class Recovered:
    """*removed*: by kind, the names of what was found and is gone. *failed*: by kind, why something is still there.

    *alive*: the ids of machines that could not be killed; what they stand on is kept.
    """

    removed: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)

    def add(self, kind: str, names: Sequence[str]) -> None:
        if names:
            self.removed[kind] = [*self.removed.get(kind, []), *names]

    def to_json(self) -> dict[str, Any]:
        return {**self.removed, **({"failed": self.failed} if self.failed else {})}


async def recover(
    found: Recovered, sweepers: Mapping[str, Sweeper], index: Index, folders: Path, trail: Trail
) -> list[SandboxInfo]:
    """Run *sweepers*, then end on record every sandbox that has no end yet; the suspended ones, which have none.

    *found* gets what was done. Never raises for what cannot be removed: that is told, and the next start tries again.
    """
    for kind, sweep in sweepers.items():
        try:
            with anyio.fail_after(SWEEP_S):
                found.add(kind, await sweep())
        except (CasemateError, OSError, TimeoutError) as error:
            found.failed[kind] = str(error) or f"took over {SWEEP_S:g} s"
    left = {i.id: Record(i, None) for i in await index.unfinished()}
    suspended: list[SandboxInfo] = []
    for folder in sorted(folders.iterdir()) if folders.is_dir() else []:
        record = read_meta(folder)  # None for what is no sandbox's
        if record is not None and record.sandbox.id == folder.name:
            left[folder.name] = record
        if folder.name in found.alive:
            continue
        record = left.get(folder.name)
        if record is not None and (info := await anyio.to_thread.run_sync(_still_suspended, folder, record)):
            suspended.append(await _indexed(info, index))
            del left[info.id]
            continue
        try:
            await anyio.to_thread.run_sync(_remove, folder)
            found.add("folders", [folder.name])
        except OSError as error:
            found.failed["folders"] = f"{folder}: {error}"
    for record in left.values():
        await _end_on_record(record, index, trail)
    found.add("sandboxes", sorted(left))
    if found.removed or found.failed:
        tell = log.error if found.failed else log.warning
        tell("swept what an earlier daemon left", **found.to_json())
    await trail.record(
        EventKind.DAEMON_STARTED, tenant="system", subject=index.host_id, detail={"recovered": found.to_json()}
    )
    return suspended


async def _indexed(info: SandboxInfo, index: Index) -> SandboxInfo:
    """Its name may be another's by now, as when its folder was brought back from a backup: it gets on without."""
    try:
        await index.put(info)
    except StateConflict as error:
        log.error("a suspended sandbox has lost its name", sandbox=info.id, name=info.name, error=str(error))
        info = replace(info, name=None)
        await index.put(info)
    return info


def _still_suspended(folder: Path, record: Record) -> SandboxInfo | None:
    """What *folder* has a whole stored machine of, whatever was under way with it; None for all else. Blocks."""
    info = record.sandbox
    if info.state in (State.TERMINATING, State.TERMINATED):
        return None
    place = Place(folder)
    if not os.path.lexists(place.kept):  # it came by a rename, whole: whatever it is now is not ours to throw away
        return None
    try:
        place.tidy()
    except OSError as error:
        log.error("what lies beside a suspended sandbox could not be removed", sandbox=info.id, error=str(error))
    if info.state is State.SUSPENDED:
        return info
    try:
        facts: SuspendedFacts | None = Suspended.read(folder).facts
    except ImageBroken:  # a resume says what is wrong with it
        facts = None
    info = replace(info, state=State.SUSPENDED, state_reason=None, pid=None, suspended=facts)
    try:
        write_meta(folder, info)
    except OSError as error:  # a full disk keeps no daemon from starting: the next start finds the same
        log.error("a suspended sandbox could not be recorded", sandbox=info.id, error=str(error))
    return info


async def _end_on_record(record: Record, index: Index, trail: Trail) -> None:
    info = record.sandbox
    if info.state is State.TERMINATED or not is_id(info.id):
        return
    reason = _reason(record)
    ended: SandboxInfo = info.terminated(reason)
    await index.put(ended)
    await trail.record(
        EventKind.SANDBOX_TERMINATED,
        tenant=info.tenant,
        subject=info.id,
        detail={"reason": reason.code, "message": reason.message},
    )


def _reason(record: Record) -> StateReason:
    """Why it ended: what was on record when its end had begun, else that nobody was there any more."""
    info = record.sandbox
    if info.state is State.TERMINATING and info.state_reason is not None:
        return info.state_reason
    if record.boot_id is not None and record.boot_id != boot_id():
        return StateReason(Reason.HOST_REBOOTED.value, "the host was started again while it ran")
    return StateReason(Reason.DAEMON_DIED.value, "the daemon that ran it died")


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        remove_folder(path)

"""What the steps of one sandbox's plans hand on to each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.abc import TaskGroup

from casemate import errors
from casemate.sandbox.admission import Reservation, Share
from casemate.sandbox.carrying import Carrier
from casemate.sandbox.handle import Handle
from casemate.sandbox.link import Link
from casemate.sandbox.snapshot import Snapshot
from casemate.sandbox.suspended import Place, Suspended
from casemate.vmm import Kernel, Machine

if TYPE_CHECKING:
    from casemate.sandbox.suspending import Saving


@dataclass(eq=False)
class Boot:
    """One sandbox in its supervisor's hands; each machine that it lives in, one after another, fills in the rest."""

    handle: Handle
    place: Place
    share: Share | None = None  # what was set aside for it, and others, before it was thought of
    born: float = field(default_factory=time.perf_counter)
    started: bool = False
    has_turn: bool = False  # it is one of the few that are being started
    warmed: bool = False  # it has done something before it runs
    kept: bool = False  # what is left of it at the end of its supervisor is not removed
    sealed: bool = False  # what its machine was is on the disk
    failure: errors.CasemateError | None = None
    attestation: Mapping[str, object] | None = None
    intended: asyncio.Event = field(default_factory=asyncio.Event)
    restored_ms: float = 0.0
    admitted_ms: float = 0.0
    found: Suspended | None = None  # what it was last resumed from
    own_memory: str | None = None  # the file in its folder that its memory is, or was restored from: booted from disk
    kernel: Kernel | None = None  # of a boot from the disk
    booted: bool = False  # its machine writes that file itself
    saving: Saving | None = None  # the suspend that has just succeeded
    _snapshot: Snapshot | None = None
    _beside: TaskGroup | None = None
    _reservation: Reservation | None = None
    _machine: Machine | None = None
    _link: Link | None = None
    _carrier: Carrier | None = None

    @property
    def id(self) -> str:
        return self.handle.info.id

    @property
    def snapshot(self) -> Snapshot:
        assert self._snapshot is not None, "a resume has not found it yet"
        return self._snapshot

    @property
    def memory(self) -> Path:
        """The file under what its guest has written."""
        return self.snapshot.files.memory if self.own_memory is None else self.place.folder / self.own_memory

    @property
    def beside(self) -> TaskGroup:
        assert self._beside is not None, "record comes first"
        return self._beside

    @property
    def reservation(self) -> Reservation:
        assert self._reservation is not None, "reserve comes first"
        return self._reservation

    @property
    def machine(self) -> Machine:
        assert self._machine is not None, "machine comes first"
        return self._machine

    @property
    def link(self) -> Link:
        assert self._link is not None, "link comes first"
        return self._link

    @property
    def carrier(self) -> Carrier:
        assert self._carrier is not None, "link comes first"
        return self._carrier

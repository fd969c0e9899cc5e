"""QEMU's monitor over a socket we made: qemu.qmp, with deadlines and our own errors."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError

from casemate.errors import StateConflict, VmmExited, VmmRefused

ANSWER_S = 20.0
POLL_S = 0.002
MIGRATION_S = 60.0


class Monitor:
    """Made by ``open_monitor``. One command at a time is QEMU's own rule; the client queues."""

    def __init__(self, client: QMPClient, raw: socket.socket, guest_id: str) -> None:
        self._client = client
        self._raw = raw
        self._guest_id = guest_id
        self.idle = anyio.Lock(fast_acquire=True)  # whoever holds it knows that no command is under way
        self.frozen = False  # its VMM answers nothing

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The answer to one command. Raises VmmRefused with QEMU's words, VmmExited when it is gone.

        StateConflict when it is frozen.
        """
        try:
            with anyio.fail_after(ANSWER_S):
                async with self.idle:
                    if self.frozen:
                        raise StateConflict(f"guest {self._guest_id} is frozen: {command} needs it thawed")
                    return await self._client.execute(command, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise VmmRefused(
                f"guest {self._guest_id}: {command}: {error}",
                evidence={"arguments": arguments, "class": error.error_class},
            ) from error
        except TimeoutError as error:
            raise VmmRefused(f"guest {self._guest_id}: {command} was not answered in {ANSWER_S:g} s") from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise VmmExited(f"guest {self._guest_id}: its VMM ended during {command}") from error

    async def add_descriptor(self, descriptor: int, fdset: int) -> None:
        """Give the VMM a descriptor as a member of */dev/fdset/N*."""
        self._pass(descriptor)
        await self.execute("add-fd", {"fdset-id": fdset})

    async def name_descriptor(self, descriptor: int, name: str) -> None:
        self._pass(descriptor)
        await self.execute("getfd", {"fdname": name})

    def _pass(self, descriptor: int) -> None:
        # The command that takes it follows; a space between JSON texts means nothing to QEMU
        try:
            socket.send_fds(self._raw, [b" "], [descriptor])
        except OSError as error:
            raise VmmExited(f"guest {self._guest_id}: its VMM is gone") from error

    async def migrate(self, command: str, uri: str) -> None:
        """Save to or load from *uri*, memory left out. Raises VmmRefused with the reason."""
        capabilities = [{"capability": "x-ignore-shared", "state": True}]
        await self.execute("migrate-set-capabilities", {"capabilities": capabilities})
        await self.execute(command, {"uri": uri})
        with anyio.move_on_after(MIGRATION_S):
            while True:
                found = await self.execute("query-migrate")
                match found.get("status"):
                    case "completed":
                        return
                    case "failed" | "cancelled":
                        why = found.get("error-desc", "no reason given")
                        raise VmmRefused(f"guest {self._guest_id}: {command} failed: {why}")
                await anyio.sleep(POLL_S)  # the event of its end is not sent without another capability
        raise VmmRefused(f"guest {self._guest_id}: {command} did not end within {MIGRATION_S:g} s")


@asynccontextmanager
async def open_monitor(ours: socket.socket, guest_id: str) -> AsyncIterator[Monitor]:
    """Greet and negotiate on *ours*, which is used up. Raises VmmExited when nobody answers."""
    raw, client = ours.dup(), QMPClient(guest_id)
    try:
        try:
            with anyio.fail_after(ANSWER_S):
                await client.connect(ours)
        except (QMPError, OSError, TimeoutError, EOFError) as error:
            raise VmmExited(f"guest {guest_id}: its VMM ended before its monitor answered: {error}") from error
        yield Monitor(client, raw, guest_id)
    finally:
        raw.close()
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await _part(client)


async def _part(client: QMPClient) -> None:
    try:
        await client.disconnect()
    except (QMPError, OSError, EOFError):
        return  # it broke before we closed it: the machine's exit tells what happened

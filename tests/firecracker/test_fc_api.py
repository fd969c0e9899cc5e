"""Our client against the real binary: every call we can make is one it knows, and its refusals are read as such."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from tests.firecracker.bare import connect_below, run_bare
from tests.unit.vmm.test_firecracker_calls import possible

from casemate.errors import VmmExited, VmmRefused
from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.api import Api, open_api
from casemate.vmm.firecracker.builds import Build
from casemate.vmm.firecracker.versions import PINNED

pytestmark = pytest.mark.usefixtures("no_trace")
NOT_UNDERSTOOD = ("deserializing", "Invalid request", "Invalid method", "The API Resource")  # of any call's fault


def talk(connection: socket.socket, main: Callable[[Api], Awaitable[None]]) -> None:
    async def opening() -> None:
        connection.setblocking(False)
        async with open_api(connection, "abc") as api:
            await main(api)

    anyio.run(opening)


def test_it_understands_every_call(firecracker: Build, tmp_path: Path) -> None:
    """What it thinks of the paths in them is another matter."""
    for name in ("log", "metrics"):
        (tmp_path / name).touch()

    async def main(api: Api) -> None:
        assert await api.do(calls.version()) == {"firecracker_version": str(firecracker.version)}
        assert (await api.do(calls.instance()))["state"] == "Not started"
        refusals = []
        for call in possible(firecracker.version):
            if call in (calls.start(), calls.version(), calls.instance()):
                continue
            try:
                assert await api.do(call) is None
            except VmmRefused as refused:
                refusals.append(refused.evidence)
        assert {refusal["status"] for refusal in refusals} == {400}
        for refusal in refusals:
            assert not any(words in refusal["fault"] for words in NOT_UNDERSTOOD), refusal

    with run_bare(firecracker.firecracker, tmp_path) as bare:
        talk(connect_below(bare.folder, "api.sock"), main)


def test_it_refuses_what_it_does_not_know(firecracker: Build, tmp_path: Path) -> None:
    """So the table of its release is right to take no field that it does not name."""

    async def main(api: Api) -> None:
        odd = calls.Call("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "colour": "red"})
        with pytest.raises(VmmRefused, match="unknown field `colour`"):
            await api.do(odd)
        with pytest.raises(VmmRefused, match="Invalid request") as refused:
            await api.do(calls.Call("PUT", "/teapot", {}))
        assert refused.value.evidence["status"] == 400
        if firecracker.version < calls.TRACKING_RENAMED:
            with pytest.raises(VmmRefused, match="unknown field `track_dirty_pages`"):
                await api.do(calls.load("/state", "/memory", True, version=PINNED))
        assert await api.do(calls.machine_config(1, 128)) is None  # the connection is as good as before

    with run_bare(firecracker.firecracker, tmp_path) as bare:
        talk(connect_below(bare.folder, "api.sock"), main)


def test_it_is_killed_under_a_call(firecracker: Build, tmp_path: Path) -> None:
    async def main(api: Api) -> None:
        await api.do(calls.version())
        bare.process.kill()
        bare.process.wait()
        for _ in range(2):
            with pytest.raises(VmmExited, match="ended during GET /version"):
                await api.do(calls.version())

    with run_bare(firecracker.firecracker, tmp_path) as bare:
        talk(connect_below(bare.folder, "api.sock"), main)

"""A daemon's app on a socket, over a guest of this process, for a CLI in a process of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from tests.unit.api.api_world import World, open_world

from casemate import storage
from casemate.sdk import Sandbox


@dataclass(frozen=True)
class Served:
    world: World
    call: Callable[..., Any]  # runs a coroutine function in the world's event loop

    @property
    def url(self) -> str:
        return f"unix://{self.world.path}"

    def create(self) -> Sandbox:
        return Sandbox.create(url=self.url)


@pytest.fixture
def served(no_trace: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """CASEMATE_URL leads to it."""
    folder = Path(tempfile.mkdtemp(prefix="cm-"))  # short: a socket's path has 108 bytes
    database = storage.open(folder / "db")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_world(folder, database)) as world,
    ):
        served = Served(world, portal.call)
        monkeypatch.setenv("CASEMATE_URL", served.url)
        yield served
    database.close()
    shutil.rmtree(folder)

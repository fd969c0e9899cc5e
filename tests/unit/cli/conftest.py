"""A daemon's app on a socket, over a guest of this process, for a CLI in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import anyio.from_thread
import pytest
from tests.databases import open_new
from tests.memory import quick_folder
from tests.unit.api.api_world import World, open_world

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
    with (
        quick_folder("cm-") as folder,
        closing(open_new(folder / "db")) as database,
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_world(folder, database)) as world,
    ):
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        served = Served(world, portal.call)
        monkeypatch.setenv("CASEMATE_URL", served.url)
        yield served

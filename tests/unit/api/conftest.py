"""One fixture: a served world."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from api_world import DEADLINE_S, World, open_world
from blockbuster import blockbuster_ctx
from tests.databases import open_new
from tests.memory import quick_folder


@pytest.fixture
def serve(no_trace):
    """Run one scenario with a world of its own, within a deadline."""
    with quick_folder("cm-") as folder:
        database = open_new(folder / "db")  # blocks, as it does in the daemon, before there is a loop

        def run(scenario: Callable[[World], Awaitable[None]], **settings: Any) -> None:
            async def main() -> None:
                with anyio.fail_after(DEADLINE_S):
                    async with open_world(folder, database, **settings) as world:
                        await scenario(world)

            with blockbuster_ctx("casemate"):  # what blocks the event loop fails the test
                anyio.run(main, backend_options={"use_uvloop": True})

        yield run
        database.close()

"""Real machines, from the bottom of the ladder up.

    built     a home at rest with the snapshot that ``casemate setup`` made, or built where the code is another
    home      a copy of it (the artifacts are hard links)
    daemon    one daemon on that for all tests of one worker
    sandbox   a fresh clone for one test
    any_machine   beside the daemon, by hand: opens a machine, once booted and once restored

A test that needs another daemon makes one with ``run_daemon``, on a home ``home_like(built, …)``; one that has to build
its own, on a ``new_home``. Where setup has not been run, the tests skip and say so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from machines import Clone, open_booted, open_clone, open_driver
from vm_world import Daemon, built, home_like, start_daemon, stop_daemon

from casemate.sdk import Sandbox
from casemate.sdk.daemon import answers

SETTINGS = {"CASEMATE_PARK_MARGIN_S": "5"}
__all__ = ["any_machine", "built", "daemon", "home", "sandbox"]


@pytest.fixture(scope="session")
def home(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home_like(built, tmp_path_factory.mktemp("casemate"))


@pytest.fixture(scope="session")
def daemon(home: Path) -> Iterator[Daemon]:
    daemon = start_daemon(home, **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASEMATE_URL", daemon.url)
        yield daemon
    stop_daemon(daemon)


@pytest.fixture(autouse=True)
def daemon_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test in which it ends fails and says what it said; the others get another one."""
    yield
    if "daemon" not in request.fixturenames:
        return
    daemon: Daemon = request.getfixturevalue("daemon")
    if daemon.process.poll() is not None or not answers(daemon.home / "run/daemon.sock"):
        said = daemon.last_words()
        daemon.process.kill()
        status = daemon.process.wait()
        daemon.process = start_daemon(daemon.home, **SETTINGS).process
        pytest.fail(f"the daemon ended with {status}, or took no calls; it said: {said}")


@pytest.fixture
def sandbox(daemon: Daemon, no_trace: None) -> Iterator[Sandbox]:
    with Sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(params=[open_booted, open_clone], ids=["booted", "restored"])
def any_machine(
    request: pytest.FixtureRequest, daemon: Daemon, tmp_path: Path, no_trace: None
) -> Callable[[], AbstractAsyncContextManager[Clone]]:
    """What a guest promises it promises however it came to life."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Clone]:
        async with open_driver(daemon.home) as driver, request.param(driver, daemon.home, tmp_path) as machine:
            yield machine

    return opened

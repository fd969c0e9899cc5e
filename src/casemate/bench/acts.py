"""The product's side: each act as a user of the API does it, over HTTP, with a connection that is open."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from casemate.errors import GuestError
from casemate.sdk import Client, Sandbox

FILE_BYTES = 16 << 20
Act = Callable[[], float]


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


class Acts:
    """Each returns the milliseconds of one sample. *sandbox* is a warm one, which has done each act before."""

    def __init__(self, client: Client, sandbox: Sandbox) -> None:
        self._client, self._sandbox = client, sandbox
        self._data = os.urandom(FILE_BYTES)
        sandbox.commands.run(["/bin/true"])
        sandbox.files.write("got.bin", self._data)

    def exec_roundtrip(self) -> float:
        return timed(lambda: self._sandbox.commands.run(["/bin/true"], check=True))

    def put_16mib(self) -> float:
        return timed(lambda: self._sandbox.files.write("put.bin", self._data))

    def get_16mib(self) -> float:
        def get() -> None:
            if self._sandbox.files.read("got.bin") != self._data:
                raise GuestError("the file came back changed")

        return timed(get)


@contextmanager
def open_acts(client: Client) -> Iterator[Acts]:
    with Sandbox.create(client=client, attached=True) as sandbox:
        yield Acts(client, sandbox)


def create_to_first_answer(client: Client) -> float:
    with ExitStack() as held:
        return timed(lambda: held.enter_context(Sandbox.create(client=client)))


def create_to_first_exec(client: Client) -> float:
    with ExitStack() as held:

        def create_and_run() -> None:
            sandbox = held.enter_context(Sandbox.create(client=client))
            sandbox.commands.run(["/bin/true"], check=True)

        return timed(create_and_run)


def burst(client: Client, count: int) -> float:
    """Until the last of *count* asked for at once has answered."""
    with ExitStack() as held, ThreadPoolExecutor(count) as threads:

        def create(_: int) -> None:
            held.enter_context(Sandbox.create(client=client, create_timeout_s=120))

        return timed(lambda: list(threads.map(create, range(count))))


def private_memory_mb(client: Client) -> float:
    """Anonymous memory, 10^6 bytes, of a VMM after its hand-shake and one /bin/true.

    Raises OSError when this user may not read it.
    """
    with Sandbox.create(client=client) as sandbox:
        sandbox.commands.run(["/bin/true"], check=True)
        return anonymous_mb(sandbox.info.pid)


def anonymous_mb(pid: int | None) -> float:
    """Of a process, 10^6 bytes. Raises OSError when this user may not read it."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        found = next(line for line in file if line.startswith("Anonymous:"))
    return int(found.split()[1]) * 1024 / 1e6


def forget_template(clone: Mapping[str, Any]) -> None:
    """Take the template's files out of the page cache. Pages that a live clone has mapped stay."""
    for path in {*(wanted["path"] for wanted in clone["descriptors"]), clone["disk"]}:
        if os.path.isfile(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

"""Images that come from elsewhere and go elsewhere: a bundle streamed out, a bundle streamed in.

import:  client ──> pieces ──> pipe ──> worker thread: parse, hash, stage ──> store and version, together
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import BinaryIO, TypeVar

import anyio

from casemate import errors
from casemate.build.host import BuildHost
from casemate.build.references import check_name
from casemate.build.removal import Removal
from casemate.images import Manifest, Staged
from casemate.images import bundle as bundles
from casemate.storage import VersionRow
from casemate.storage import images as rows

PIECE_LIMIT_S = 60.0  # a client that says nothing for so long has left
PIPE_BYTES = 1 << 20
IMPORTS_AT_ONCE = 4
T = TypeVar("T")


class Transfer:
    def __init__(self, host: BuildHost, removal: Removal) -> None:
        self._host = host
        self._removal = removal
        self._places = anyio.Semaphore(IMPORTS_AT_ONCE)

    # ----------------------------------------------------------------------------------- export

    @asynccontextmanager
    async def export(self, version: VersionRow) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The bundle of a version: how many bytes it has, and them. Raises StateConflict, ImageBroken, NotFound."""
        if version.state != "ready":
            raise errors.StateConflict(f"image {version.reference} is {version.state}; only a ready one is exported")
        with ExitStack() as held:
            store = self._host.workshop.store
            files = {}
            for part in bundles.PARTS:  # opened: hashed in full unless it was since the boot
                descriptor = await anyio.to_thread.run_sync(store.open, version.artifacts[part])
                files[part] = held.enter_context(os.fdopen(descriptor, "rb"))
            sizes = {part: os.fstat(file.fileno()).st_size for part, file in files.items()}
            manifest = Manifest(
                name=version.name,
                version=version.number,
                config={key: str(value) for key, value in version.config.items()},
                kernel_release=version.artifacts["kernel_release"],
                artifacts={part: (version.artifacts[part], sizes[part]) for part in bundles.PARTS},
            )
            yield bundles.length(manifest), in_thread(bundles.written(manifest, files))

    # ----------------------------------------------------------------------------------- import

    async def receive(self, tenant: str, name: str | None, pieces: AsyncIterator[bytes]) -> VersionRow:
        """A bundle becomes the next, active version of its image, or of *name*; the same one twice is one version.

        Cancelled or failed: nothing of it stays. Raises InvalidSpec, HostFull, RequestError for a client that stalls.
        """
        if name is not None:
            check_name(name)
        parse = partial(bundles.stage, store=self._host.workshop.store)
        async with self._places, fed(pieces, parse, Staged.abandon) as staged:
            manifest = staged.manifest
            check_name(name or manifest.name)
            digests = {part: digest for part, (digest, _) in manifest.artifacts.items()}
            with anyio.CancelScope(shield=True):  # both or neither
                async with self._removal.turn:
                    await anyio.to_thread.run_sync(staged.enter)
                    return await self._host.database.write(
                        rows.add_imported,
                        tenant,
                        self._host.host_id,
                        name or manifest.name,
                        {key: value for key, value in manifest.config.items() if key != "built_in"},
                        {**digests, "kernel_release": manifest.kernel_release},
                        manifest.size_bytes,
                    )
        raise AssertionError("unreachable")


async def in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """*pieces*, each made in a worker thread."""
    while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
        yield piece


@asynccontextmanager
async def fed(
    pieces: AsyncIterator[bytes], parse: Callable[[BinaryIO], T], abandon: Callable[[T], None]
) -> AsyncIterator[T]:
    """What *parse* makes, in a worker thread, of what comes; in the end *abandon* is called with it, in one too.

    Raises what *parse* raises, of our own errors; RequestError for a client that stalls.
    """
    found: list[T] = []
    failures: list[errors.CasemateError] = []

    def read(source: BinaryIO) -> None:
        with source:  # closed early when it is no bundle, so that nobody waits to write the rest of it
            try:
                found.append(parse(source))
            except errors.CasemateError as error:
                failures.append(error)

    read_end, write_end = _open_pipe()
    try:
        with read_end:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, read, read_end)
                with write_end:
                    if not await _feed(write_end, pieces):
                        failures.insert(0, _stalled())
        if failures:
            raise failures[0]
        yield found[0]
    finally:
        for one in found:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(abandon, one)


def _open_pipe() -> tuple[BinaryIO, BinaryIO]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a user over his share of pipe memory has the usual 64 KiB: only slower
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb", buffering=0)


async def _feed(pipe: BinaryIO, pieces: AsyncIterator[bytes]) -> bool:
    """Everything that comes, as long as somebody reads; False when nothing came for too long."""
    while True:
        try:
            with anyio.fail_after(PIECE_LIMIT_S):
                piece = await anext(pieces)
            await anyio.to_thread.run_sync(_write_all, pipe, piece)
        except TimeoutError:
            return False
        except (StopAsyncIteration, BrokenPipeError):  # all of it; or its reader has seen enough
            return True


def _write_all(pipe: BinaryIO, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[pipe.write(left) :]


def _stalled() -> errors.RequestError:
    return errors.RequestError(f"nothing came for {PIECE_LIMIT_S:g} s; the import was given up", hint="send it again")

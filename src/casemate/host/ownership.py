"""Every resource has one owner: a block that opens it and lets it go, whatever happens in between."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from casemate.errors import LeakedResource


def _something_leaked(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(LeakedResource) is not None
    return isinstance(error, LeakedResource)


@asynccontextmanager
async def own(what: str, release: Callable[[], Awaitable[object]], *, limit_s: float = 5.0) -> AsyncIterator[None]:
    """Call *release* when the block ends, shielded from cancellation, within *limit_s*.

    With one exception: when something opened inside the block could not be released, this is kept too,
    for it may still be in use (the disk of a VMM that did not die).
    Raises LeakedResource when *release* fails or takes too long.
    """

    async def let_go() -> None:
        try:
            with anyio.fail_after(limit_s, shield=True):
                await release()
        except Exception as error:  # whatever it was, the resource is still there
            raise LeakedResource(
                f"{what} could not be released: {error!r}", hint="the next start of the daemon sweeps it"
            ) from error

    try:
        yield
    except BaseException as error:
        if not _something_leaked(error):
            await let_go()
        raise
    else:
        await let_go()


def remove_folder(path: Path) -> None:
    """Delete *path* and all in it; nothing happens when it is not there. Blocks. Raises OSError."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


@asynccontextmanager
async def own_folder(path: Path, mode: int = 0o700) -> AsyncIterator[Path]:
    """A new folder, its owner's only unless *mode* says more; at the end removed with all in it, if still there."""
    async with own(f"folder {path}", partial(anyio.to_thread.run_sync, remove_folder, path), limit_s=20.0):
        path.mkdir(mode=mode)
        yield path

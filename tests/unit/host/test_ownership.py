"""What is opened is let go, whatever happens in between; what cannot be let go is said, and kept."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from casemate.errors import LeakedResource
from casemate.host import own, own_folder


def test_a_cancelled_block_still_lets_go() -> None:
    async def run() -> list[str]:
        told: list[str] = []

        async def release() -> None:
            await anyio.sleep(0.01)
            told.append("released")

        with anyio.move_on_after(0.01):
            async with own("it", release):
                await anyio.sleep_forever()
        return told

    assert anyio.run(run) == ["released"]


def test_a_release_that_hangs_is_a_leak_in_time() -> None:
    async def run() -> None:
        async with own("it", anyio.sleep_forever, limit_s=0.05):
            pass

    with pytest.raises(LeakedResource, match="it could not be released"):
        anyio.run(run)


def test_what_a_leak_stands_on_is_kept(tmp_path: Path) -> None:
    """The disk of a VMM that did not die must not be taken from under it."""

    async def fail() -> None:
        raise OSError("still there")

    async def run() -> None:
        async with own_folder(tmp_path / "disk"), own("a process", fail):
            pass

    with pytest.raises(LeakedResource):
        anyio.run(run)
    assert (tmp_path / "disk").is_dir()


def test_a_folder_goes_with_all_in_it_also_after_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        async with own_folder(tmp_path / "folder", 0o710) as folder:
            assert folder.stat().st_mode & 0o777 == 0o710
            (folder / "file").touch()
            raise KeyError

    with pytest.raises(KeyError):
        anyio.run(run)
    assert list(tmp_path.iterdir()) == []

"""Files that go into a sandbox before something runs there, and come out after."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.cli.newfile import new_file
from casemate.cli.options import Get, Put

if TYPE_CHECKING:
    from casemate.sdk import Sandbox

PIECE_BYTES = 262_144


def put_all(sandbox: Sandbox, puts: Sequence[Put]) -> None:
    for item in puts:
        sandbox.files.write(item.guest, _pieces(item.host), mode=_mode(item.host))


def get_all(sandbox: Sandbox, gets: Sequence[Get], *, failed: bool) -> None:
    """Copy files out. After a program that failed, what it did not write is not the error to report."""
    from casemate.errors import FileRefused

    for item in gets:
        try:
            with sandbox.files.stream(item.guest) as pieces, new_file(item.host) as file:
                for piece in pieces:
                    file.write(piece)
        except FileRefused as error:
            if not failed:
                raise
            print(f"casemate: {item.guest}: {error.message}", file=sys.stderr)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o755 | 0o600

"""Code and stdin on their way to a context: short code in the message, all else in memory files."""

from __future__ import annotations

import os
from typing import Any

from casemate.guest.cells import Cell

INLINE_BYTES = 16 * 1024


def hand_over(cell: Cell, message: dict[str, Any]) -> list[int]:
    """Complete *message*; the answer are the files to go along, to be given to `take_back` later. Raises OSError."""
    files: list[int] = []
    try:
        text = _short_text(cell.code)
        if text is None:
            message["code_fd"] = True
            files.append(_memory_file(cell.code))
        else:
            message["code"] = text
        if cell.stdin is not None:
            message["stdin_fd"] = True
            files.append(_memory_file(cell.stdin))
    except OSError:
        take_back(files)
        raise
    return files


def take_back(files: list[int]) -> None:
    """Emptied first: who keeps one of them keeps no memory of the agent's."""
    while files:
        fd = files.pop()
        os.ftruncate(fd, 0)
        os.close(fd)


def _short_text(code: bytearray) -> str | None:
    """None: too long for a message, or no text at all."""
    if len(code) > INLINE_BYTES:
        return None
    try:
        return code.decode()
    except UnicodeDecodeError:
        return None


def _memory_file(content: bytearray) -> int:
    fd = os.memfd_create("cell", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd

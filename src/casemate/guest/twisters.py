"""Fresh words for the Mersenne twisters of a frozen process: whatever of it runs first draws them.

Written as a debugger would, where runtime/twisters.py says. The addresses are the process' own word and may be any, but
they are in its own memory.
"""

from __future__ import annotations

import os
import struct

MARK = b"casemate-twister"
WORDS = 624
_ENTRY = struct.Struct("QQQ")
_TABLE_BYTES = len(MARK) + 2 * _ENTRY.size
_USED_UP = struct.pack("i", WORDS)  # the index: the next draw begins with new words


def refill(pid: int, table: int) -> None:
    """Fill those that the *table* at that address in *pid* names, but what the user has seeded.

    What is gone, runs another program by now or names what it does not have is left as it is.
    """
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
    try:
        found = os.pread(memory, _TABLE_BYTES, table)
        if len(found) < _TABLE_BYTES or not found.startswith(MARK):
            return
        for words, index, is_users in _ENTRY.iter_unpack(found[len(MARK) :]):
            if words and index and not is_users:
                os.pwrite(memory, os.urandom(4 * WORDS), words)
                os.pwrite(memory, _USED_UP, index)
    except (OSError, OverflowError):  # nothing is there
        return
    finally:
        os.close(memory)

"""Where a result goes that is written again and again: a file that is whole at any time, or once standard output."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from casemate.cli.newfile import new_file
from casemate.errors import RequestError

NEW_MODE = 0o666


class Target:
    """A file, replaced by each write, of the mode it had; where it can't be replaced (a device, a folder that is not
    ours) it is written to.
    """

    def __init__(self, path: Path) -> None:
        """Raises RequestError for what could not be written: better said before than after."""
        self.path = path
        self._real = path.resolve()  # a link stays one
        found = self._real.stat() if self._real.exists() else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise RequestError(f"{path}: is a folder", hint="say the name of a file")
        if not self._real.parent.is_dir():
            raise RequestError(f"{path.parent}: there is no such folder", hint=f"mkdir -p {path.parent}")
        self._mode = stat.S_IMODE(found.st_mode) if found is not None else NEW_MODE
        replaceable = os.access(self._real.parent, os.W_OK) and (found is None or stat.S_ISREG(found.st_mode))
        self._written_to = not replaceable
        if self._written_to and not (found is not None and os.access(self._real, os.W_OK)):
            raise RequestError(f"{path}: you may not write there")

    def write(self, data: bytes) -> None:
        try:
            if self._written_to:
                self._real.write_bytes(data)
                return
            with new_file(self._real, self._mode) as file:
                file.write(data)
        except OSError as error:
            raise RequestError(f"{self.path}: {error.strerror}") from error


class Standard:
    """Standard output."""

    def write(self, data: bytes) -> None:
        from casemate.cli.attach import STDOUT, write_all

        write_all(STDOUT, data)

"""A file on this host that comes into being whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
    """A file that is at *path* once it is whole, of *mode* as the umask lets it; a failure leaves what was there."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.chmod(file.name, mode & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    now = os.umask(0o077)  # there is no other way to read it
    os.umask(now)
    return now

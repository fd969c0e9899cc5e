"""Images and snapshots to a file and from one, with progress on stderr where that is a terminal."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from casemate.cli.newfile import new_file
from casemate.cli.progress import Tell, first_use
from casemate.errors import InvalidSpec, RequestError

PIECE_BYTES = 1 << 20
STDIN, STDOUT = 0, 1
SECRET_MODE = 0o600  # what a sandbox had in memory is nobody else's on this host


def export_image(ref: str, output: str | None) -> None:
    """To the file *output*, which is there once it is whole; ``-`` is our standard output."""
    from casemate.sdk import Client, Images

    output = _output(ref, output, "casemate image export")
    with Client() as client, ExitStack() as held:
        images = Images(client)
        size_bytes = int(images.get(ref)["size_bytes"])
        tell = held.enter_context(first_use())
        _write(_told(tell, "export", held.enter_context(images.export(ref)), size_bytes), output)
    if output != "-":
        print(f"{ref} is in {output}", file=sys.stderr)


def import_image(path: str, name: str | None) -> dict[str, Any]:
    from casemate.sdk import Client, Images

    with Client() as client, ExitStack() as held:
        return Images(client).import_(held.enter_context(_read(path)), name=name)


def export_snapshot(ref: str, output: str | None, *, base: bool) -> dict[str, Any] | None:
    """As an image; the file and its sha256. To our standard output goes the tar alone, and None is the answer: the
    sha256 is on stderr then.
    """
    from casemate.sdk import Client

    output = _output(ref, output, "casemate snapshots export")
    sha256 = hashlib.sha256()
    with Client() as client, ExitStack() as held:
        size_bytes = int(client.snapshots.get(ref)["own_bytes"])
        tell = held.enter_context(first_use())
        pieces = held.enter_context(client.snapshots.export(ref, base=base))
        _write(_told(tell, "export", _hashed(pieces, sha256), size_bytes), output, SECRET_MODE)
    if output == "-":
        print(f"{sha256.hexdigest()}  -", file=sys.stderr)
        return None
    return {"file": output, "sha256": sha256.hexdigest(), "size_bytes": os.stat(output).st_size}


def import_snapshot(path: str, sha256: str, name: str | None) -> dict[str, Any]:
    from casemate.sdk import Client

    with Client() as client, ExitStack() as held:
        return client.snapshots.import_(held.enter_context(_read(path)), sha256=sha256, name=name)


def _output(ref: str, output: str | None, verb: str) -> str:
    if output is None:
        output = f"{ref.replace(':', '-').replace('@', '-')}.tar" if sys.stdout.isatty() else "-"
    if output == "-" and sys.stdout.isatty():
        raise InvalidSpec("a tar is no text for a terminal", hint=f"{verb} {ref} -o FILE.tar")
    return output


def _write(pieces: Iterable[bytes], output: str, mode: int = 0o666) -> None:
    from casemate.cli.attach import write_all

    if output == "-":
        for piece in pieces:
            write_all(STDOUT, piece)
        return
    with _whole(Path(output), mode) as file:
        for piece in pieces:
            file.write(piece)


@contextmanager
def _read(path: str) -> Iterator[Iterator[bytes]]:
    """The file in pieces, and how far it is."""
    with ExitStack() as held:
        try:
            file = held.enter_context(open(STDIN if path == "-" else path, "rb", closefd=path != "-"))
        except OSError as error:
            raise RequestError(f"{path}: {error.strerror}", hint="it has to be a file you can read") from error
        tell = held.enter_context(first_use())
        pieces = iter(lambda: file.read(PIECE_BYTES), b"")
        yield _told(tell, "import", pieces, os.fstat(file.fileno()).st_size)


def _hashed(pieces: Iterable[bytes], sha256: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        sha256.update(piece)
        yield piece


def _whole(path: Path, mode: int) -> Any:
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent}: there is no such folder", hint=f"mkdir -p {path.parent}")
    return new_file(path, mode)


def _told(tell: Tell | None, what: str, pieces: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if tell is not None:
            tell(what, f"{done >> 20} MiB", min(1.0, done / size_bytes) if size_bytes else None)

"""An image to a file and from one, with progress on stderr where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from casemate.cli.newfile import new_file
from casemate.cli.progress import Tell, first_use
from casemate.errors import InvalidSpec, RequestError

PIECE_BYTES = 1 << 20
STDIN, STDOUT = 0, 1


def export_image(ref: str, output: str | None) -> None:
    """To the file *output*, which is there once it is whole; ``-`` is our standard output."""
    from casemate.cli.attach import write_all
    from casemate.sdk import Client, Images

    if output is None:
        output = f"{ref.replace(':', '-').replace('@', '-')}.tar" if sys.stdout.isatty() else "-"
    if output == "-" and sys.stdout.isatty():
        raise InvalidSpec("an image is no text for a terminal", hint=f"casemate image export {ref} -o image.tar")
    with Client() as client, ExitStack() as held:
        images = Images(client)
        size_bytes = int(images.get(ref)["size_bytes"])
        tell = held.enter_context(first_use())
        pieces = _told(tell, "export", held.enter_context(images.export(ref)), size_bytes)
        if output == "-":
            for piece in pieces:
                write_all(STDOUT, piece)
            return
        with _whole(Path(output)) as file:
            for piece in pieces:
                file.write(piece)
    print(f"{ref} is in {output}", file=sys.stderr)


def import_image(path: str, name: str | None) -> dict[str, Any]:
    from casemate.sdk import Client, Images

    with Client() as client, ExitStack() as held:
        try:
            file = held.enter_context(open(STDIN if path == "-" else path, "rb", closefd=path != "-"))
        except OSError as error:
            raise RequestError(f"{path}: {error.strerror}", hint="it has to be a file you can read") from error
        size_bytes = os.fstat(file.fileno()).st_size
        tell = held.enter_context(first_use())
        pieces = iter(lambda: file.read(PIECE_BYTES), b"")
        return Images(client).import_(_told(tell, "import", pieces, size_bytes), name=name)


def _whole(path: Path) -> Any:
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent}: there is no such folder", hint=f"mkdir -p {path.parent}")
    return new_file(path)


def _told(tell: Tell | None, what: str, pieces: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if tell is not None:
            tell(what, f"{done >> 20} MiB", min(1.0, done / size_bytes) if size_bytes else None)

"""``casemate cp``: files and folders, into a sandbox and out of it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from casemate.errors import FileRefused, InvalidSpec, RequestError

if TYPE_CHECKING:
    from casemate.sdk import Sandbox

PIECE_BYTES = 262_144
STREAM = "-"


@dataclass(frozen=True, slots=True)
class Place:
    """*sandbox* None: on this machine, where *path* may be ``-``."""

    sandbox: str | None
    path: str

    @property
    def contents_only(self) -> bool:
        """``folder/.`` means what is in it."""
        return self.path == "." or self.path.endswith("/.")


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="PATH, SANDBOX:PATH or - for standard input.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="SANDBOX:PATH, PATH or - for standard output.")],
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="The guest's user who copies.")] = None,
    limit_mib: Annotated[int, typer.Option("--limit", metavar="MIB", min=1, help="A folder may bring.")] = 65_536,
) -> None:
    """Copy a file or a folder into a sandbox, or out of it.

    Modes are kept. A folder is copied with all that is in it, into DST when that is a folder; SRC/. means just what is
    in it. Paths in the guest are relative to /home/user. A folder to - is a tar archive.
    Nothing is written outside DST: symbolic links that would lead out are left out and named; the status is then 1.

    Example:
      casemate cp data work:data
      casemate cp work:out/chart.png .
    """
    there, here = _place(source), _place(target)
    if (there.sandbox is None) == (here.sandbox is None):
        raise InvalidSpec("one of SRC and DST must be in a sandbox, as work:data.csv", hint="./a:b is a file named a:b")
    from casemate.sdk import Client, Sandbox

    with Client() as client:
        sandbox = Sandbox.connect(here.sandbox or there.sandbox or "", client=client)
        if here.sandbox is not None:
            _copy_in(sandbox, there, here.path, user)
        else:
            _copy_out(sandbox, there, here.path, user, limit_mib << 20)


def _place(word: str) -> Place:
    """``work:a/b`` is in a sandbox; with a slash before the colon it is a name."""
    name, colon, path = word.partition(":")
    if not colon or "/" in name or not name:
        return Place(None, word)
    return Place(name, path or ".")


# ----------------------------------------------------------------------- in


def _copy_in(sandbox: Sandbox, source: Place, target: str, user: str | None) -> None:
    if source.path == STREAM:
        sandbox.files.write(target, _stdin(), user=user)
        return
    local = Path(source.path)
    try:
        found = local.stat()
    except OSError as error:
        raise RequestError(f"{local}: {error.strerror}") from error
    name = local.name or local.resolve().name
    if stat.S_ISDIR(found.st_mode):
        into = target if source.contents_only else _below(sandbox, target, name, user)
        sandbox.files.put_folder(local, into, user=user)
    elif stat.S_ISREG(found.st_mode):
        mode = stat.S_IMODE(found.st_mode) & 0o777
        sandbox.files.write(_below(sandbox, target, name, user), _pieces(local), mode=mode, user=user)
    else:
        raise RequestError(f"{local}: neither a file nor a folder")


def _below(sandbox: Sandbox, target: str, name: str, user: str | None) -> str:
    """*target*, or *name* in it when it is a folder."""
    try:
        folder = sandbox.files.stat(target, follow=True, user=user).type == "dir"
    except FileRefused as error:
        if error.evidence.get("errno") != "ENOENT":
            raise
        folder = target.endswith("/")
    return str(PurePosixPath(target, name)) if folder else target


def _pieces(local: Path) -> Iterator[bytes]:
    with local.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _stdin() -> Iterator[bytes]:
    while piece := os.read(0, PIECE_BYTES):
        yield piece


# ---------------------------------------------------------------------- out


def _copy_out(sandbox: Sandbox, source: Place, target: str, user: str | None, limit_bytes: int) -> None:
    found = sandbox.files.stat(source.path, follow=True, user=user)
    if target == STREAM:
        _print(sandbox, source.path, user, folder=found.type == "dir")
        return
    local, name = Path(target), PurePosixPath(source.path).name
    if found.type == "dir":
        into = local / name if local.is_dir() and not source.contents_only and name not in ("", "..") else local
        _fetch_folder(sandbox, source.path, into, user, limit_bytes)
    else:
        if local.is_dir() or target.endswith("/"):
            local /= name
        _fetch_file(sandbox, source.path, local, found.mode & 0o777, user)


def _print(sandbox: Sandbox, path: str, user: str | None, *, folder: bool) -> None:
    from casemate.cli.attach import STDOUT, write_all

    opened = sandbox.files.archive(path, user=user) if folder else sandbox.files.stream(path, user=user)
    with opened as pieces:
        for piece in pieces:
            write_all(STDOUT, piece)


def _fetch_folder(sandbox: Sandbox, path: str, into: Path, user: str | None, limit_bytes: int) -> None:
    try:
        done = sandbox.files.get_folder(path, into, user=user, limit_bytes=limit_bytes)
    except OSError as error:
        raise RequestError(f"{into}/{error.filename or ''}: {error.strerror}") from error
    if done.left_out_count:
        for left_out in done.left_out:
            print(f"casemate: {left_out!a}: a symbolic link that leads out; left out", file=sys.stderr)
        print(f"casemate: {done.left_out_count} symbolic links were left out", file=sys.stderr)
        raise typer.Exit(1)


def _fetch_file(sandbox: Sandbox, path: str, local: Path, mode: int, user: str | None) -> None:
    """Under another name until it is whole: what was at *local*, or what that linked to, is never written to."""
    try:
        with tempfile.NamedTemporaryFile(dir=local.parent, prefix=".casemate-", delete=False) as file:
            try:
                with sandbox.files.stream(path, user=user) as pieces:
                    for piece in pieces:
                        file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.replace(file.name, local)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise RequestError(f"{local}: {error.strerror}") from error

"""Channels of kind file: read, write, stat, list, remove, mkdir, move."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from casemate import wire
from casemate.errors import ExecRefused, FileRefused, InvalidSpec
from casemate.guest import files
from casemate.guest.accounts import Account
from casemate.guest.conversation import Conversation, optional_text, text, whole

READ_BYTES = 65_536


class FileChannel(Conversation):
    """One operation on one file."""

    _fd = -1
    _left: int | None = None
    _replacement: files.Replacement | None = None
    _listing: Iterator[dict[str, Any]] | None = None

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        operation = _OPERATIONS.get(op)
        if operation is None:
            raise InvalidSpec(f"file has no op {op!r}")
        self._account = self._rights(optional_text(params, "user"))
        operation(self, self._path(text(params, "path")), params)

    def _rights(self, user: str | None) -> Account:
        try:
            return self.server.surroundings.account(user)
        except ExecRefused as error:
            raise FileRefused(error.message, hint=error.hint, evidence=error.evidence) from error

    def _acting(self) -> AbstractContextManager[None]:
        return files.rights_of(self._account if self.server.surroundings.change_user else None)

    def _path(self, path: str) -> str:
        return os.path.join(self._account.home, path)

    # ------------------------------------------------------------------ reading

    def _read(self, path: str, params: dict[str, Any]) -> None:
        offset, length = whole(params, "offset", 0), params.get("length")
        if length is not None:
            self._left = whole(params, "length", 0)
        with self._acting():
            self._fd, found = files.open_to_read(path)
            if offset:
                os.lseek(self._fd, offset, os.SEEK_SET)
        self.accept({"size": found.st_size, "mode": found.st_mode & 0o7777})
        self._send()

    def _send(self) -> None:
        """Read as much as the window takes: it comes back here with the next credit."""
        fd, connection, number = self._fd, self.connection, self.number
        while fd >= 0:
            count = min(READ_BYTES, connection.writable(number))
            if self._left is not None:
                count = min(count, self._left)
                if not self._left:
                    break
            if not count:
                self._ask_for_credit()
                return
            try:
                data = os.read(fd, count)
            except OSError as error:
                self._stop_reading()
                self._break_off(files.refusal(error))
                return
            if not data:
                break
            connection.send(number, 1, data)
            if self._left is not None:
                self._left -= len(data)
        self._stop_reading()
        self.finish()

    def _stop_reading(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ask_for_credit(self) -> None:
        """With a window that is used up a send takes nothing, and on_writable is called when there is credit again."""
        self.connection.send(self.number, 1, b"\0")

    def on_writable(self) -> None:
        if self._fd >= 0:
            self._send()
        elif self._listing is not None:
            self._send_entries()

    # ------------------------------------------------------------------ writing

    def _write(self, path: str, params: dict[str, Any]) -> None:
        mode = params.get("mode")
        if mode is not None:
            mode = whole(params, "mode", 0)
        with self._acting():
            self._replacement = files.Replacement(path, mode, bool(params.get("make_parents")))
        self.accept()

    def on_data(self, event: wire.Data) -> None:
        self.connection.consumed(self.number, event.size)
        if self._replacement is not None:
            try:
                self._replacement.write(event.data)
            except OSError as error:
                self._give_up()
                self._break_off(files.refusal(error))

    def on_finished(self) -> None:
        replacement = self._replacement
        if replacement is None:
            return
        try:
            with self._acting():
                replacement.commit()
        except FileRefused as error:
            self._give_up()
            self._break_off(error)
            return
        self._replacement = None
        self.connection.send_message(self.number, {"event": "written", "size": replacement.written})
        self.finish()

    def on_closed(self, lost: bool) -> None:
        self._stop_reading()
        self._give_up()

    def _give_up(self) -> None:
        replacement, self._replacement = self._replacement, None
        if replacement is not None:
            try:
                with self._acting():
                    replacement.give_up()
            except FileRefused:
                return  # its folder has gone, and it with that

    def _break_off(self, error: FileRefused) -> None:
        """A reset has room for a code and a hint: the kernel's reason goes first in the hint."""
        self.reset(error.code, f"{error.evidence['errno']}: {error.message}")

    # --------------------------------------------------------------- other acts

    def _stat(self, path: str, params: dict[str, Any]) -> None:
        with self._acting():
            found = files.entry(path, follow=bool(params.get("follow")))
        self.accept(found)
        self.finish()

    def _list(self, path: str, params: dict[str, Any]) -> None:
        with self._acting():
            self._listing = files.entries(path)
            first = files.some(self._listing)
        self.accept({"entries": first})
        self._send_entries()

    def _send_entries(self) -> None:
        """Go on with a long list, as far as the window goes."""
        assert self._listing is not None
        while self.connection.writable(self.number):
            with self._acting():
                more = files.some(self._listing)
            if not more:
                self._listing = None
                self.finish()
                return
            self.connection.send_message(self.number, {"entries": more})
        self._ask_for_credit()

    def _remove(self, path: str, params: dict[str, Any]) -> None:
        with self._acting():
            files.remove(path, bool(params.get("recursive")))
        self.accept()
        self.finish()

    def _mkdir(self, path: str, params: dict[str, Any]) -> None:
        with self._acting():
            os.makedirs(path, exist_ok=True)
        self.accept()
        self.finish()

    def _move(self, path: str, params: dict[str, Any]) -> None:
        with self._acting():
            os.rename(path, self._path(text(params, "to")))
        self.accept()
        self.finish()


_OPERATIONS = {
    "read": FileChannel._read,
    "write": FileChannel._write,
    "stat": FileChannel._stat,
    "list": FileChannel._list,
    "remove": FileChannel._remove,
    "mkdir": FileChannel._mkdir,
    "move": FileChannel._move,
}

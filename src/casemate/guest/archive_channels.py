"""Channels of kind archive: a folder as a stream of tar, packed here or unpacked here, with a user's rights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from casemate import wire
from casemate.archive import Unpacker, pack
from casemate.errors import CasemateError, ExecRefused, FileRefused, InvalidSpec
from casemate.guest import files
from casemate.guest.conversation import Conversation, optional_text, text

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class ArchiveChannel(Conversation):
    """One folder, one way."""

    _pieces: Iterator[bytes] | None = None
    _rest: memoryview | bytes = b""
    _unpacker: Unpacker | None = None

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        try:
            self._account = self.server.surroundings.account(optional_text(params, "user"))
        except ExecRefused as error:
            raise FileRefused(error.message, hint=error.hint, evidence=error.evidence) from error
        path = os.path.join(self._account.home, text(params, "path"))
        if op == "pack":
            with self._acting():
                self._pieces = pack(path)
            self.accept()
            self._or_give_up(self._send)
        elif op == "unpack":
            with self._acting():
                new = not os.path.lexists(path)
                os.makedirs(path, exist_ok=True)
                root = os.open(path, _FOLDER)
            self._memory = files.Memory()
            self._unpacker = Unpacker(root, outward_links=True, new_root=new)
            self.accept()
        else:
            raise InvalidSpec(f"archive has no op {op!r}")

    def _acting(self) -> AbstractContextManager[None]:
        return files.rights_of(self._account if self.server.surroundings.change_user else None)

    # ------------------------------------------------------------------ packing

    def _send(self) -> None:
        """As much as the window takes: it comes back here with the next credit."""
        assert self._pieces is not None
        with self._acting():
            while True:
                if self._rest:
                    taken = self.connection.send(self.number, 1, self._rest)
                    self._rest = self._rest[taken:]
                    if self._rest:
                        return
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
        self._pieces = None
        self.finish()

    def on_writable(self) -> None:
        if self._pieces is not None:
            self._or_give_up(self._send)

    # ---------------------------------------------------------------- unpacking

    def on_data(self, event: wire.Data) -> None:
        self.connection.consumed(self.number, event.size)
        unpacker = self._unpacker
        if unpacker is not None:
            self._or_give_up(lambda: self._unpack(unpacker, event.data))

    def _unpack(self, unpacker: Unpacker, data: bytes) -> None:
        with self._acting():
            self._memory.take(len(data))
            unpacker.feed(data)

    def on_finished(self) -> None:
        unpacker = self._unpacker
        if unpacker is not None:
            self._or_give_up(lambda: self._complete(unpacker))

    def _complete(self, unpacker: Unpacker) -> None:
        with self._acting():
            done = unpacker.finish()
            unpacker.close()
        self._unpacker = None
        self.connection.send_message(
            self.number, {"event": "unpacked", "members": done.members, "size": done.size_bytes}
        )
        self.finish()

    def _or_give_up(self, act: Any) -> None:
        try:
            act()
        except CasemateError:
            self._let_go()
            raise

    def on_closed(self, lost: bool) -> None:
        self._let_go()

    def _let_go(self) -> None:
        pieces, self._pieces = self._pieces, None
        unpacker, self._unpacker = self._unpacker, None
        if pieces is not None:
            pieces.close()  # type: ignore[attr-defined]
        if unpacker is not None:
            with self._acting():
                unpacker.close()

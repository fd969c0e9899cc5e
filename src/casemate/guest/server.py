"""Between the wire and what the agent can do: one conversation per channel, by kind.

Bytes from the host that no honest host sends end the connection: the agent forgets it and hunts for a new one.
A failure in one channel ends that channel.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from casemate import wire
from casemate.errors import CasemateError, InvalidSpec, NotSupported, ProtocolViolation, StateConflict
from casemate.guest import handshake
from casemate.guest.archive_channels import ArchiveChannel
from casemate.guest.cell_channels import CellChannel
from casemate.guest.context_channels import ContextChannel
from casemate.guest.control import ControlChannel
from casemate.guest.conversation import Conversation
from casemate.guest.exec_channels import ExecChannel
from casemate.guest.file_channels import FileChannel
from casemate.guest.port_channels import PortChannel
from casemate.guest.timer_list import UserTimers
from casemate.wire.frames import HEADER_BYTES, MAGIC

if TYPE_CHECKING:
    from casemate.guest.cgroups import Groups
    from casemate.guest.contexts import Contexts
    from casemate.guest.exec_table import ExecTable
    from casemate.guest.reactor import Reactor
    from casemate.guest.surroundings import Surroundings

SERVED: dict[str, type[Conversation]] = {
    "exec": ExecChannel,
    "cell": CellChannel,
    "context": ContextChannel,
    "file": FileChannel,
    "archive": ArchiveChannel,
    "tcp-in": PortChannel,
    "control": ControlChannel,
}


class Warmth(Protocol):
    """What `prepare` starts: the warm Python and the waiting children."""

    @property
    def contexts(self) -> Contexts | None: ...

    def prepare(self, zygote: bool, done: Callable[[dict[str, Any]], None], failed: Callable[[str], None]) -> None: ...

    def rehearse(self, done: Callable[[], None]) -> None: ...

    def restock(self, done: Callable[[], None]) -> None: ...


class Server:
    """Owns the conversations. The transport hands it bytes and takes its bytes."""

    def __init__(
        self,
        reactor: Reactor,
        groups: Groups,
        execs: ExecTable,
        surroundings: Surroundings,
        introduction: handshake.Handshake,
        warmth: Warmth,
    ) -> None:
        self.reactor, self.groups, self.execs = reactor, groups, execs
        self.surroundings = surroundings
        self.connection = wire.Connection(wire.Side.GUEST)
        self.timers = UserTimers(groups.processes)
        self._nowhere = wire.Connection(wire.Side.GUEST)  # knows no channel, so swallows all that is said on one
        self._introduction, self._warmth = introduction, warmth
        self._conversations: dict[int, Conversation] = {}
        self._on_event: dict[type[Any], Callable[[Any], None]] = {
            wire.Opened: self._on_opened,
            wire.Data: self._on_data,
            wire.Message: self._on_message,
            wire.Writable: self._on_writable,
            wire.Finished: self._on_finished,
            wire.Reset: self._on_reset,
            wire.Synced: self._on_synced,
            wire.Hello: self._on_hello,
        }

    @property
    def contexts(self) -> Contexts | None:
        return self._warmth.contexts

    def prepared_contexts(self) -> Contexts:
        """Raises NotSupported where there are none."""
        if self.contexts is None:
            raise NotSupported(
                "this sandbox has no warm Python", hint="its image has no python3, or it was not prepared"
            )
        return self.contexts

    def prepare(self, zygote: bool, done: Callable[[dict[str, Any]], None], failed: Callable[[str], None]) -> None:
        self._warmth.prepare(zygote, done, failed)

    def rehearse(self, done: Callable[[], None]) -> None:
        self._warmth.rehearse(done)

    def restock(self, done: Callable[[], None]) -> None:
        self._warmth.restock(done)

    def receive(self, data: bytes) -> None:
        """Bytes from the host."""
        try:
            for event in self.connection.receive(data):
                act = self._on_event.get(type(event))
                if act is not None:
                    act(event)
        except ProtocolViolation as violation:
            self._start_anew(data, violation)

    def lose(self) -> None:
        """The stream ended. What runs goes on or not as its starter wished; the next SYNC begins anew.

        Of a conversation at rest that was foreseen: it goes on over the next stream.
        """
        if not self.connection.resting:
            self._break_off()

    def _break_off(self) -> None:
        self._drop_all()
        self.connection.lost()

    def forget(self, conversation: Conversation) -> None:
        """*conversation* was denied or reset by its owner, or has said all."""
        if self._conversations.get(conversation.number) is conversation:
            del self._conversations[conversation.number]

    def _start_anew(self, data: bytes, violation: ProtocolViolation) -> None:
        print(violation, file=sys.stderr)
        self._break_off()
        begin = data.rfind(MAGIC) - HEADER_BYTES
        if begin > 0:  # the host has begun anew in the very same piece
            self.receive(data[begin:])

    def _drop_all(self) -> None:
        conversations, self._conversations = self._conversations, {}
        for conversation in conversations.values():
            conversation.connection = self._nowhere  # its number is another channel's in the next connection
            self._guard(conversation, lambda talk=conversation: talk.on_closed(True))  # type: ignore[misc]

    # ------------------------------------------------------------- connection

    def _on_synced(self, _event: wire.Synced) -> None:
        self._drop_all()

    def _on_hello(self, event: wire.Hello) -> None:
        try:
            hello = handshake.parse(event.body)
        except InvalidSpec as error:
            raise ProtocolViolation(f"HELLO: {error}") from error
        ready = self._introduction.apply(hello)
        if hello.fresh:
            self._become(hello)
        self.connection.ready(ready)
        if not hello.copy and self.groups.is_stopped:  # whoever had them frozen is gone, or this would be a copy
            self.groups.freeze(False)

    def _become(self, hello: handshake.Hello) -> None:
        """Another's from now on. In a copy user processes are frozen: nothing here waits for one of them.

        What was said on the channels of the one that was copied ended with its connection.
        """
        self.surroundings.take(hello)
        if hello.copy:
            self.execs.rename_all()
        if self.contexts is not None:
            (self.contexts.begin_as_copy if hello.copy else self.contexts.begin_anew)()

    # --------------------------------------------------------------- channels

    def _on_opened(self, event: wire.Opened) -> None:
        kind = SERVED.get(event.kind)
        if kind is None:
            self.connection.deny(event.channel, "not-served", f"this agent does not serve {event.kind[:40]!r}")
        elif not self._introduction.applied:
            self.connection.deny(event.channel, StateConflict.code, "say HELLO first", message="not introduced yet")
        else:
            conversation = self._conversations[event.channel] = kind(self, event.channel)
            self._guard(conversation, lambda: conversation.begin(event.params))

    def _on_data(self, event: wire.Data) -> None:
        conversation = self._conversations.get(event.channel)
        if conversation is None:
            self.connection.consumed(event.channel, event.size)
        else:
            self._guard(conversation, lambda: conversation.on_data(event))

    def _on_message(self, event: wire.Message) -> None:
        conversation = self._conversations.get(event.channel)
        self.connection.consumed(event.channel, event.size)
        if conversation is not None:
            self._guard(conversation, lambda: conversation.on_message(event.body))

    def _on_writable(self, event: wire.Writable) -> None:
        conversation = self._conversations.get(event.channel)
        if conversation is not None:
            self._guard(conversation, conversation.on_writable)

    def _on_finished(self, event: wire.Finished) -> None:
        conversation = self._conversations.get(event.channel)
        if conversation is not None:
            conversation.host_finished = True
            self._guard(conversation, conversation.on_finished)
            if conversation.finished:
                self.forget(conversation)

    def _on_reset(self, event: wire.Reset) -> None:
        conversation = self._conversations.pop(event.channel, None)
        if conversation is not None:
            self._guard(conversation, lambda: conversation.on_closed(False))

    def _guard(self, conversation: Conversation, act: Callable[[], None]) -> None:
        """Run *act*; what goes wrong in it is that channel's end, and nobody else's."""
        try:
            act()
        except CasemateError as error:
            self._refuse(conversation, error)
        except UnicodeError as error:
            self._refuse(conversation, InvalidSpec(f"a name that is no text: {error}"))
        except Exception as error:  # a bug of ours; PID 1 must outlive it
            traceback.print_exc(file=sys.stderr)
            conversation.reset("internal", repr(error)[:1000])

    def _refuse(self, conversation: Conversation, error: CasemateError) -> None:
        if conversation.answered:
            conversation.reset(error.code, str(error)[:1000])
        else:
            conversation.deny(error)

"""What the real Firecracker says on its vsock's socket, written down act by act: ``transcripts/*.json``.

``python -m tests.firecracker.transcripts`` makes them all anew; ``test_fc_transcripts.py`` makes each again where the
binary is there, and compares. ``counterpart.py`` plays them back to the code under test, and knows nothing beside them.

    {"made_by": "firecracker 1.12.1", "about": "…", "events": [
        {"on": 1, "host": "connects"},          a program on the host; "on" numbers its connections
        {"on": 1, "host": "says", "what": "CONNECT 1024\\n"},
        {"on": 1, "vmm": "says", "what": "OK 1073741824\\n"},
        {"on": 1, "vmm": "is silent"},          for SILENT_S at least
        {"act": "pause"},                       an API call, or what the guest was told to do
        {"on": 1, "vmm": "closes"}]}            or "resets"; "host": "closes"
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.firecracker.bare import Bare, connect_below, run_bare
from tests.firecracker.binaries import find_binaries
from tests.firecracker.guests import Word, compile_guests

from casemate.vmm.firecracker.builds import Build

FOLDER = Path(__file__).parent / "transcripts"
PORT = 1024
SILENT_S = 0.3
ANSWER_S = 20.0
Event = dict[str, Any]
ALL: dict[str, Callable[[Recorder], None]] = {}  # in the order in which they are told below


@dataclass
class Recorder:
    """A host's end of things: it does what a scenario says, and writes down that and what came of it."""

    firecracker: Path
    guests: Path
    folder: Path
    events: list[Event] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _connections: dict[int, socket.socket] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str = "one") -> Bare:
        return self._stack.enter_context(run_bare(self.firecracker, self.folder / name))

    def boot(self, guest: str) -> Bare:
        bare = self.start()
        bare.boot(self.guests / guest, vsock=True)
        bare.memory()
        self.act(f"a guest boots: {guest}")
        return bare

    def act(self, what: str) -> None:
        self.events.append({"act": what})

    def connect(self, bare: Bare, line: bytes = b"") -> int:
        """The number of a new connection, on which *line* is said."""
        number = len(self._connections) + 1
        self._connections[number] = self._stack.enter_context(connect_below(bare.folder, "v.sock"))
        self._connections[number].settimeout(ANSWER_S)
        self.events.append({"on": number, "host": "connects"})
        if line:
            self.say(number, line)
        return number

    def say(self, number: int, what: bytes) -> None:
        self._connections[number].sendall(what)
        self.events.append({"on": number, "host": "says", "what": what.decode("ascii")})

    def close(self, number: int) -> None:
        self._connections[number].close()
        self.events.append({"on": number, "host": "closes"})

    def hear(self, number: int, length: int = 0) -> None:
        """What is said next: so many bytes, or a line; or that it ends."""
        heard = b""
        while (len(heard) < length) if length else not heard.endswith(b"\n"):
            try:
                piece = self._connections[number].recv(1)
            except ConnectionResetError:
                self.events.append({"on": number, "vmm": "resets"})
                return
            if not piece:
                assert not heard
                self.events.append({"on": number, "vmm": "closes"})
                return
            heard += piece
        self.events.append({"on": number, "vmm": "says", "what": heard.decode("ascii")})

    def silence(self, number: int) -> None:
        self._connections[number].settimeout(SILENT_S)
        try:
            said = self._connections[number].recv(1)
        except TimeoutError:
            self.events.append({"on": number, "vmm": "is silent"})
        else:
            raise AssertionError(f"silence was expected, not {said!r}")
        finally:
            self._connections[number].settimeout(ANSWER_S)


def scenario(record: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
    ALL[record.__name__] = record
    return record


CONNECT = f"CONNECT {PORT}\n".encode()


@scenario
def heard_and_answered(r: Recorder) -> None:
    """The hand-shake, bytes both ways, an end from the host; the next connection has the next number."""
    bare = r.boot("vsock")
    one = r.connect(bare, CONNECT)
    r.hear(one)
    r.say(one, b"hello")
    r.hear(one, 5)
    r.close(one)
    r.hear(r.connect(bare, CONNECT))


@scenario
def the_guest_speaks_first(r: Recorder) -> None:
    """Its words come right behind the answer to the line."""
    one = r.connect(r.boot("vsock"), b"CONNECT 2048\n")
    r.hear(one)
    r.hear(one, 8)


@scenario
def nobody_listens(r: Recorder) -> None:
    """Refused: it closes without a word. The port is open for others all the while."""
    bare = r.boot("vsock")
    r.hear(r.connect(bare, b"CONNECT 1025\n"))
    r.hear(r.connect(bare, CONNECT))


@scenario
def the_guest_sleeps(r: Recorder) -> None:
    """Before the guest's driver is up nobody answers; then everybody is answered who has waited for it."""
    bare = r.boot("late")
    one = r.connect(bare, CONNECT)
    r.silence(one)
    two = r.connect(bare, CONNECT)
    r.silence(two)
    bare.memory().obey(Word.LISTEN)
    r.act("the guest listens")
    r.hear(one)
    r.hear(two)


@scenario
def given_up_while_the_guest_sleeps(r: Recorder) -> None:
    """Who does not wait until the driver is up takes a number all the same, and disturbs nobody."""
    bare = r.boot("late")
    one = r.connect(bare, CONNECT)
    r.silence(one)
    r.close(one)
    bare.memory().obey(Word.LISTEN)
    r.act("the guest listens")
    two = r.connect(bare, CONNECT)
    r.hear(two)
    r.say(two, b"hello")
    r.hear(two, 5)


@scenario
def no_guest_ever_listens(r: Recorder) -> None:
    """A guest without a driver for the device."""
    bare = r.boot("counter")
    one = r.connect(bare, CONNECT)
    r.silence(one)
    r.close(one)


@scenario
def lines_it_does_not_take(r: Recorder) -> None:
    """Each of them ends its own connection, without a word."""
    bare = r.boot("vsock")
    for line in (
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT: 1024\n",
        b"LISTEN 1024\n",
        b"\n\n\n\n\n\n\n\n\n\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT 000000000000000000000000000000001024\n",
    ):
        r.hear(r.connect(bare, line))
    r.hear(r.connect(bare, CONNECT))


@scenario
def other_lines_that_it_takes(r: Recorder) -> None:
    """In small letters, with more words, and with what is meant for the guest right behind the line."""
    bare = r.boot("vsock")
    r.hear(r.connect(bare, b"connect 1024\n"))
    r.hear(r.connect(bare, b"CONNECT 1024 please\n"))
    eager = r.connect(bare, b"CONNECT 1024\nhello")
    r.hear(eager)
    r.hear(eager, 5)


@scenario
def half_a_line(r: Recorder) -> None:
    """It does not wait for the other half."""
    bare = r.boot("vsock")
    r.hear(r.connect(bare, b"CONN"))
    r.hear(r.connect(bare, b"CONNECT 1024"))


@scenario
def not_a_word(r: Recorder) -> None:
    """Who says nothing is waited for, and keeps nobody else waiting."""
    bare = r.boot("vsock")
    mute = r.connect(bare)
    r.silence(mute)
    r.hear(r.connect(bare, CONNECT))
    r.silence(mute)
    r.say(mute, CONNECT)
    r.hear(mute)


@scenario
def closed_by_the_guest(r: Recorder) -> None:
    """In good order: the host reads the end."""
    bare = r.boot("vsock")
    one = r.connect(bare, CONNECT)
    r.hear(one)
    bare.memory().obey(Word.CLOSE)
    r.act("the guest closes")
    r.hear(one)


@scenario
def dropped_by_the_guest(r: Recorder) -> None:
    """Without order: the host reads the end, too, and cannot tell."""
    bare = r.boot("vsock")
    one = r.connect(bare, CONNECT)
    r.hear(one)
    bare.memory().obey(Word.DROP)
    r.act("the guest drops")
    r.hear(one)


@scenario
def killed(r: Recorder) -> None:
    """The VMM ends while one is connected, and one waits."""
    bare = r.boot("vsock")
    one = r.connect(bare, CONNECT)
    r.hear(one)
    mute = r.connect(bare)
    r.silence(mute)
    bare.process.kill()
    bare.process.wait()
    r.act("the VMM is killed")
    r.hear(one)
    r.hear(mute)


@scenario
def paused_and_unpaused(r: Recorder) -> None:
    """Nothing is lost: what is said meanwhile, a hand-shake too, is answered afterwards."""
    bare = r.boot("vsock")
    one = r.connect(bare, CONNECT)
    r.hear(one)
    bare.pause()
    r.act("pause")
    r.say(one, b"hello")
    r.silence(one)
    two = r.connect(bare, CONNECT)
    r.silence(two)
    bare.unpause()
    r.act("unpause")
    r.hear(one, 5)
    r.hear(two)
    r.say(two, b"again")
    r.hear(two, 5)
    r.hear(r.connect(bare, CONNECT))


@scenario
def saved_and_unpaused(r: Recorder) -> None:
    """The guest is told that all connections are gone; the host learns it when it says something."""
    bare = r.boot("vsock")
    idle = r.connect(bare, CONNECT)
    r.hear(idle)
    busy = r.connect(bare, CONNECT)
    r.hear(busy)
    bare.pause()
    r.act("pause")
    bare.save()
    r.act("save")
    r.silence(idle)
    bare.unpause()
    r.act("unpause")
    r.silence(idle)
    r.say(busy, b"hello")
    r.hear(busy)
    fresh = r.connect(bare, CONNECT)
    r.hear(fresh)
    r.say(fresh, b"hello")
    r.hear(fresh, 5)


@scenario
def waiting_while_saved(r: Recorder) -> None:
    """A hand-shake that was under way when the machine was saved, in the machine that goes on."""
    bare = r.boot("vsock")
    bare.pause()
    r.act("pause")
    one = r.connect(bare, CONNECT)
    r.silence(one)
    bare.save()
    r.act("save")
    bare.unpause()
    r.act("unpause")
    r.hear(one)


@scenario
def restored(r: Recorder) -> None:
    """A clone has no connection, counts from the beginning, and answers when it runs; its parent had one."""
    parent = r.boot("vsock")
    r.hear(r.connect(parent, CONNECT))
    parent.pause()
    r.act("pause")
    parent.save()
    r.act("save")
    clone = r.start("clone")
    clone.load(parent.folder / "state", parent.folder / "memory")
    r.act("load into another")
    one = r.connect(clone, CONNECT)
    r.silence(one)
    clone.unpause()
    r.act("unpause")
    r.hear(one)
    r.say(one, b"hello")
    r.hear(one, 5)
    r.hear(r.connect(clone, CONNECT))


def record(name: str, build: Build, guests: Path, folder: Path) -> dict[str, Any]:
    """The transcript of the scenario *name*, by *build*."""
    play = ALL[name]
    with Recorder(build.firecracker, guests, folder) as recorder:
        play(recorder)
    about = (play.__doc__ or "").strip()
    return {"made_by": f"firecracker {build.version}", "about": about, "events": recorder.events}


def written(transcript: dict[str, Any]) -> str:
    """As it is in a file: one event a line."""
    events = ",\n".join(f"  {json.dumps(event)}" for event in transcript["events"])
    head = json.dumps({name: value for name, value in transcript.items() if name != "events"}, ensure_ascii=False)
    return f'{head[:-1]}, "events": [\n{events}\n]}}\n'


def main() -> None:
    if isinstance(found := find_binaries(), str):
        sys.exit(found)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temp:
        guests = compile_guests(Path(temp))
        for name in ALL:
            (FOLDER / f"{name}.json").write_text(written(record(name, found, guests, Path(temp) / name)))
            print(name)


if __name__ == "__main__":
    main()

"""A launcher and VMMs in jails of Firecracker's jailer, by the launcher's messages; no driver."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.firecracker.bare import Bare, answers
from tests.firecracker.guests import wait_for

from casemate.host import Bind, Jailer, Limits
from casemate.vmm.firecracker.builds import Build

UIDS = 2_140_000_000
LIMITS = Limits(memory_bytes=256 << 20, cpu_percent=150, pids=40)
API = ("--api-sock", "/exchange/api.sock")
HEARD_S = 20.0


class JailedBare(Bare):
    """The API of one in a jail; *folder* is its exchange folder."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid = pid
        self.folder = folder

    @property
    def pid(self) -> int:
        return self._pid


@dataclass
class Jailed:
    """One that was asked for. *said* is the end where its words can be read."""

    name: str
    exchange: Path
    said: int
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return int(self.told["pid"])

    @property
    def process(self) -> Path:
        return Path(f"/proc/{self.pid}")

    @property
    def status(self) -> dict[str, str]:
        lines = (self.process / "status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def words(self) -> str:
        """All it says until nobody has the other end."""
        with open(os.dup(self.said), "rb") as file:
            os.set_blocking(file.fileno(), True)
            return file.read().decode()

    def words_until(self, last: str) -> str:
        found = ""
        while last not in found:
            assert select.select([self.said], [], [], HEARD_S)[0], f"{last!r} was not said after {found!r}"
            found += (piece := os.read(self.said, 65_536).decode())
            assert piece, f"{last!r} was not said after {found!r}"
        return found

    def api(self) -> JailedBare:
        wait_for(lambda: answers(self.exchange), "the API's socket")
        return JailedBare(self.pid, self.exchange)


class Jails:
    """The daemon's end of a launcher of its own."""

    def __init__(self, binaries: Build, folder: Path, group: str, before: Sequence[str], how: str) -> None:
        self.binaries = binaries
        self.folder = folder
        self.group = group
        self.asked: list[Jailed] = []
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [*before, sys.executable, "-I", "-m", "casemate.host.launcher", str(theirs.fileno()), str(UIDS), "8"]
            self.process = subprocess.Popen([*argv, group, how], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.socket.settimeout(HEARD_S)

    def say(self, body: Mapping[str, Any], *descriptors: int) -> None:
        socket.send_fds(self.socket, [json.dumps(body).encode()], list(descriptors))

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.socket.recv(65_536))
        return found

    def ask(
        self,
        name: str = "one",
        *command: str,
        executable: Path | None = None,
        program: Path | None = None,
        given: Mapping[str, Path] | None = None,
        writable: frozenset[str] = frozenset({"/exchange"}),
        limits: Limits = LIMITS,
        changed: Mapping[str, Any] | None = None,
    ) -> Jailed:
        """Ask for a VMM; *given* are files at their places inside, *changed* parts of the message."""
        places = {"/exchange": self.make_exchange(name)} | dict(given or {})
        files = [executable or self.binaries.firecracker, program or self.binaries.jailer, *places.values()]
        binds = tuple(Bind(number, place, place in writable) for number, place in enumerate(places, 5))
        jail = Jailer(binds, name, limits, 3, 4).to_json() | dict(changed or {})
        return self.ask_for(name, jail, command or API, files)

    def make_exchange(self, name: str) -> Path:
        exchange = self.folder / name / "exchange"
        if not exchange.exists():
            exchange.parent.mkdir(mode=0o700)
            exchange.mkdir()
            exchange.chmod(0o777)
        return exchange

    def ask_for(self, name: str, jail: Mapping[str, Any], command: Sequence[str], files: Iterable[Path]) -> Jailed:
        """With *files* as its descriptors from 3 on."""
        here = f"/proc/{self.process.pid}/root"  # the launcher can use mounts of its own namespace alone
        said, says = os.pipe2(os.O_CLOEXEC)
        descriptors = [says]
        for path in files:
            readable = path.is_file() or path.is_dir()
            descriptors.append(os.open(f"{here}{path.resolve()}", os.O_RDONLY if readable else os.O_PATH))
        try:
            self.say({"do": "spawn", "id": name, "jail": dict(jail), "command": list(command)}, *descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        found = Jailed(name, self.folder / name / "exchange", said)
        self.asked.append(found)
        return found

    def spawn(self, name: str = "one", *command: str, **how: Any) -> Jailed:
        found = self.ask(name, *command, **how)
        found.told = self.hear()
        assert found.told.get("spawned") == name, f"{found.told}: {found.words()}"
        return found

    def boot(self, guest: Path, name: str = "one") -> Jailed:
        """A machine that runs *guest*."""
        found = self.spawn(name, given={"/kernel": guest})
        found.api().boot(Path("/kernel"))
        return found

    def end(self, name: str = "one") -> dict[str, Any]:
        self.say({"do": "signal", "id": name, "signal": "KILL"})
        return self.hear()

    def close(self) -> None:
        self.socket.close()
        assert self.process.wait(HEARD_S) in (0, -signal.SIGKILL), "it ended as nobody wanted"
        for asked in self.asked:
            os.close(asked.said)


@contextmanager
def open_jails(
    binaries: Build, folder: Path, group: str, before: Sequence[str] = (), *, strict: bool = True
) -> Iterator[Jails]:
    """*before*: what starts the launcher, by whose namespaces it then is."""
    jails = Jails(binaries, folder, group, before, "strict" if strict else "weak")
    try:
        yield jails
    finally:
        jails.close()

"""A sandbox in the middle of things, what it draws there, and what copies of it must then not share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tests.fair import fair_clock

from casemate.sdk import Sandbox

T = TypeVar("T")
Drawn = Mapping[str, str]
# The interpreter's generators, those of its libraries, the kernel's, and who the guest says it is.
DRAWING = """
import json, os, random, secrets, ssl, time, uuid
import numpy
tls_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
def client_random():
    read, written = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_client.wrap_bio(read, written, server_hostname='example.org')
    try: tls.do_handshake()
    except ssl.SSLWantReadError: return written.read()[11:43].hex()  # behind the record's and the message's header
def text(path):
    with open(path) as file: return file.read().strip()
def drawn():
    return {
        'os.urandom': os.urandom(16).hex(),
        'os.getrandom': os.getrandom(16).hex(),
        'uuid.uuid4': str(uuid.uuid4()),
        'random': repr(random.random()),
        'numpy.random': repr(numpy.random.random()),
        'numpy.default_rng': repr(numpy.random.default_rng().random()),
        'secrets': secrets.token_hex(16),
        'TLS': client_random(),
        'machine-id': text('/etc/machine-id'),
        'hostname': os.uname().nodename,
        'uuid': text('/proc/sys/kernel/random/uuid'),
        'boot_id': text('/proc/sys/kernel/random/boot_id'),
    }
"""
PRINTING = DRAWING + "print(json.dumps(drawn()))"
# What a new interpreter has at once
LIGHT = """
import json, os, random, secrets, uuid
print(json.dumps({'urandom': os.urandom(16).hex(), 'random': random.random(), 'secrets': secrets.token_hex(16),
    'uuid4': str(uuid.uuid4())}))
"""
# *clocks*: by how much the wall clock is ahead of the monotonic one. A copy's is set anew before its programs go on.
LOOPING = (
    DRAWING
    + """
def loop(path):
    with open(path, 'w', buffering=1) as file:
        while not os.path.exists(path + '.stop'):
            clocks = time.time() - time.monotonic()
            print(json.dumps({'clocks': clocks, **drawn()}), file=file)
            time.sleep(0.05)
"""
)
OF_THE_KERNEL = ("os.urandom", "os.getrandom", "uuid.uuid4", "secrets", "numpy.default_rng", "uuid")
SET_S = 0.04  # a copy was away for longer


def at_once(act: Callable[[Sandbox], T], sandboxes: Sequence[Sandbox]) -> list[T]:
    """Four at a time: of more, on two processors, one or another has no answer for the 30 s that it has."""
    with ThreadPoolExecutor(min(len(sandboxes), 4)) as threads:
        return list(threads.map(act, sandboxes))


def until(condition: Callable[[], object], what: str, within_s: float = 30) -> None:
    deadline = fair_clock() + within_s
    while not condition():
        assert fair_clock() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def ran(sandbox: Sandbox, code: str, **more: Any) -> str:
    """What a cell printed."""
    done = sandbox.run_code(code, **more)
    assert done.error is None, done.error
    return done.logs.stdout


def loops(sandbox: Sandbox, path: str) -> list[dict[str, Any]]:
    lines = sandbox.files.read(path).split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def since_it_is_a_copy(sandbox: Sandbox, path: str, at_least: int = 5) -> list[dict[str, Any]]:
    """The rounds of ``loop`` that began after a copy's clock had been set; what came before is its parent's, too.

    It is stopped then: many that draw all the time leave nothing to others.
    """
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        rounds = loops(sandbox, path)
        # All after the last that its parent's clock is told in: one that was held up between two clocks is no sign
        still = [at for at, one in enumerate(rounds) if abs(one["clocks"] - rounds[0]["clocks"]) <= SET_S]
        found[:] = rounds[max(still) + 1 :]
        assert len(found) < len(rounds), "it did not draw before it was copied"
        return len(found) >= at_least

    until(enough, f"{path}: {at_least} rounds in the copy", 60)
    sandbox.files.write(f"{path}.stop", b"")
    return [{name: value for name, value in one.items() if name != "clocks"} for one in found]


def shared(of_each: Sequence[Sequence[Drawn]]) -> dict[str, set[str]]:
    """What two of them have both drawn, by its source; *of_each*: the rounds of each."""
    found: dict[str, set[str]] = {}
    for source in of_each[0][0]:
        values = [{one[source] for one in rounds} for rounds in of_each]
        twice = {value for place, some in enumerate(values) for other in values[:place] for value in some & other}
        if twice:
            found[source] = twice
    return found


# No seed for its hashes, nothing imported that draws: it asks the kernel for the first time when it is told to go on
WAITING = "import os, sys; sys.stdin.readline(); print(os.getrandom(32).hex(), flush=True); sys.stdin.readline()"
WAIT = ["python3", "-I", "-S", "-c", WAITING]


def let_wait(sandbox: Sandbox) -> None:
    """For ``first_draw``."""
    with sandbox.commands.start(WAIT, env={"PYTHONHASHSEED": "0"}, stdin=True, detach=True):
        until(lambda: [one for one in sandbox.commands.list() if one["argv"] == WAIT], "it runs")


def first_draw(sandbox: Sandbox) -> str:
    """Of the program that waits: it is told to go on, whatever its id is by now."""
    (exec_id,) = [one["exec_id"] for one in sandbox.commands.list() if one["argv"] == WAIT]
    with sandbox.commands.attach(exec_id) as waiting:
        waiting.feed(b"\n", eof=False)
        return next(iter(waiting.output())).data.decode()

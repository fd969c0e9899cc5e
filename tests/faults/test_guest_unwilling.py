"""Guests that do their best not to be suspended: that comes to an end in time, and the sandbox rests or runs on."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress

import pytest
from tests.faults.world import assert_answers

from casemate.errors import CasemateError
from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow]
LONGEST_S = 60.0
REAL_TIME = """
import os
for _ in range(2):
    if os.fork() == 0:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
        while True: pass
"""
DIRTYING = """
import mmap
print('ready', flush=True)
held = mmap.mmap(-1, 200 << 20)
n = 0
while True:
    n += 1
    for at in range(0, len(held), 4096): held[at] = n % 256
"""


def asked(sandbox: Sandbox) -> str:
    """Suspend it; how it is then."""
    began = time.monotonic()
    with suppress(CasemateError):
        sandbox.suspend()
    assert time.monotonic() - began < LONGEST_S
    return sandbox.refresh().state


def test_one_whose_programs_leave_the_agent_no_time(sandbox: Sandbox) -> None:
    sandbox.commands.run(["python3", "-c", REAL_TIME], user="root", check=True)
    assert asked(sandbox) in ("running", "suspended")
    sandbox.resume()
    assert_answers(sandbox, within_s=30)


def test_one_that_writes_memory_without_an_end(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["python3", "-c", DIRTYING]) as running:
        assert next(iter(running.output())).data == b"ready\n"
        time.sleep(1)
        assert asked(sandbox) == "suspended"
        facts = sandbox.info.suspended
        assert facts is not None
        assert facts.stored_bytes <= 1.3 * (facts.dirty_bytes + facts.written_bytes)
        sandbox.resume()
        assert_answers(sandbox, within_s=10)


def test_one_whose_output_nobody_reads(sandbox: Sandbox) -> None:
    """Its pipes, its rings and the windows are full; whoever reads on gets each byte once."""
    lines = 200_000
    with sandbox.commands.start(["seq", str(lines)]) as running:
        pieces = running.output()
        text = next(iter(pieces)).data
        time.sleep(1)
        for _ in range(3):
            assert asked(sandbox) == "suspended"
            sandbox.resume()
        text += b"".join(piece.data for piece in pieces)
    assert text == b"".join(b"%d\n" % n for n in range(1, lines + 1))


def test_one_who_feeds_a_program_that_does_not_read(sandbox: Sandbox) -> None:
    with sandbox.commands.start(["sh", "-c", "sleep 6; sha256sum"], stdin=True) as running:
        data = bytes(range(256)) * 16_384  # 4 MiB
        feeding = threading.Thread(target=running.feed, args=(data,))
        feeding.start()
        time.sleep(0.5)
        assert asked(sandbox) == "suspended"
        sandbox.resume()
        said = b"".join(piece.data for piece in running.output())
        feeding.join(10)
    assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()

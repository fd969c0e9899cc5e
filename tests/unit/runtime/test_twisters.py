"""Where a context's generators lie: as told, filled anew from outside, and left to the user who has seeded them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from context_bench import ContextBench
from zygote_bench import Bench

import casemate.guest.twisters as outside
import casemate.runtime.twisters as inside

DRAW = {
    "random": "import random; (random.random(), random.getrandbits(40))",
    "numpy": "import numpy; (float(numpy.random.rand()), numpy.random.bytes(5))",
}
SEED = {
    "random": "import random; (random._inst if {ours} else random).seed(7)",
    "numpy": "import numpy; (numpy.random.mtrand._rand if {ours} else numpy.random).seed(7)",
}


@contextmanager
def stopped(context: ContextBench) -> Iterator[None]:
    os.kill(context.pid, signal.SIGSTOP)
    yield
    os.kill(context.pid, signal.SIGCONT)


@pytest.fixture(params=["random", "numpy"])
def library(request: pytest.FixtureRequest, bench: Bench) -> str:
    if request.param == "numpy" and "missing" in str(bench.zygote.about["modules"]["numpy"]):
        pytest.skip(f"{bench.python} has no numpy")
    return str(request.param)


def drawn(context: ContextBench, library: str, *, ours: bool, refilled: bool, warm: bool = False) -> str | None:
    """What comes after a seed."""
    context.run(SEED[library].format(ours=ours))
    if warm:
        context.run(DRAW[library])
    if refilled:
        with stopped(context):
            outside.refill(context.pid, context.ready["twisters"])
    return context.run(DRAW[library]).text


@pytest.mark.parametrize("warm", [False, True], ids=["at the end of its words", "among its words"])
def test_what_nobody_has_seeded_draws_anew(shared_context: ContextBench, library: str, warm: bool) -> None:
    same = drawn(shared_context, library, ours=True, refilled=False, warm=warm)
    others = [drawn(shared_context, library, ours=True, refilled=True, warm=warm) for _ in range(2)]
    assert len({same, *others}) == 3
    assert drawn(shared_context, library, ours=True, refilled=False, warm=warm) == same


def test_the_users_seed_is_left(shared_context: ContextBench, library: str) -> None:
    same = drawn(shared_context, library, ours=False, refilled=False)
    assert drawn(shared_context, library, ours=False, refilled=True) == same
    shared_context.run(SEED[library].format(ours=False).replace("7", ""))


def test_a_process_without_them_is_left_alone(shared_context: ContextBench) -> None:
    for place in (0, shared_context.ready["twisters"] + 8, 2**47, 2**63):
        outside.refill(shared_context.pid, place)
    outside.refill(2**22 + 1, shared_context.ready["twisters"])
    assert shared_context.run("1 + 1").text == "2"


def test_addresses_that_are_lies_harm_nobody(bench: Bench) -> None:
    """The table is the process' to write: it may say that the agent's own words belong anywhere in its memory."""
    context = ContextBench(bench)
    code = (
        "import ctypes, struct\n"
        "for words, index in ((8, 2**64 - 8), (id(None) & ~4095, 16), (2**63, 2**63)):\n"
        "    ctypes.memmove(%d + 16, struct.pack('QQQ', words, index, 0), 24)"
    )
    assert context.run(code % context.ready["twisters"]).kind == "ok"
    with stopped(context):
        outside.refill(context.pid, context.ready["twisters"])
    assert context.run("1 + 1").text == "2"
    context.kill()


def test_both_rooms_mean_the_same() -> None:
    assert (inside.MARK, inside.WORDS) == (outside.MARK, outside.WORDS)
    assert inside._ENTRY.format == outside._ENTRY.format

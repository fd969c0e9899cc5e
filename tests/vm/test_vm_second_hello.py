"""A clone is introduced a second time in the midst of its connection: as a pool member when it is claimed (fresh), or
when it was suspended (not fresh)."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from machines import ANSWER_S, Clone, open_clone, open_driver
from vm_world import Daemon

from casemate.sandbox import Introduction, introduce, new_id

pytestmark = pytest.mark.vm
CLONES = 8
SAME = bytes(range(64))  # the entropy of every first HELLO: without a second one the clones would be alike
DRAWS = """
import json, os, random, secrets, uuid
import numpy
print(json.dumps({
    "urandom": os.urandom(16).hex(), "random": random.random(), "uuid4": str(uuid.uuid4()),
    "secrets": secrets.token_hex(16), "numpy": float(numpy.random.random()),
    "numpy.default_rng": float(numpy.random.default_rng().random()),
}))
"""
# Not by a seed of the user's, which would stay.
ALIKE = "import random, numpy; random._inst.seed(1); numpy.random.mtrand._rand.seed(1); kept = 'kept'"


async def drawn_by_claimed(clone: Clone) -> dict[str, Any]:
    """First draws of a context that was alive at the claim, and of a script's process that waited in the snapshot."""
    await clone.run_code(ALIKE)
    await introduce(clone.link, Introduction(clone.link.guest_id), ANSWER_S)
    output, end = await clone.run_code(DRAWS)
    assert end.end.kind == "ok", end
    await clone.run("sh", "-c", 'printf %s "$1" > /tmp/draws.py', "sh", DRAWS)
    by_script, _ = await clone.run("/tmp/draws.py", script="/tmp/draws.py")
    assert (await clone.run_code("kept"))[1].text == "'kept'"
    context, script = json.loads(output), json.loads(by_script)
    return {f"context {name}": context[name] for name in context} | {f"script {name}": script[name] for name in script}


def test_claimed_clones_differ_in_every_source_at_the_first_draw(
    daemon: Daemon, tmp_path: Path, no_trace: None
) -> None:
    found: list[dict[str, Any]] = []

    async def run() -> None:
        async with open_driver(daemon.home) as driver, anyio.create_task_group() as tasks:

            async def claim(number: int) -> None:
                folder = tmp_path / str(number)
                folder.mkdir()
                async with open_clone(driver, daemon.home, folder, entropy=SAME) as clone:
                    found.append(await drawn_by_claimed(clone))

            for number in range(CLONES):
                tasks.start_soon(claim, number)

    anyio.run(run)
    for source in found[0]:
        values = [clone[source] for clone in found]
        assert len(set(values)) == CLONES, f"{source} is shared: {values}"


IDENTITY = (
    "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; grep 127.0.1.1 /etc/hosts; id -un; pwd; echo $WORD"
)


async def identity(clone: Clone) -> list[str]:
    return (await clone.run("sh", "-c", IDENTITY))[0].decode().split("\n")


def test_a_claim_gives_a_new_identity_and_a_resume_keeps_it(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    async def run() -> None:
        async with open_driver(daemon.home) as driver, open_clone(driver, daemon.home, tmp_path) as clone:
            born = await identity(clone)
            assert born[4:7] == ["user", "/home/user", ""]
            claim = Introduction(new_id(), env={"WORD": "given"}, user="root", cwd="/var")
            await introduce(clone.link, claim, ANSWER_S)
            claimed = await identity(clone)
            assert claimed[0] == claim.machine_id
            assert claimed[2:7] == [claim.hostname, f"127.0.1.1 {claim.hostname}", "root", "/var", "given"]
            assert len({born[0], claimed[0]}) == len({born[1], claimed[1]}) == 2
            await clone.run_code("import random; random.seed(7)")
            await clone.run("date", "-s", "2031-01-01")
            resume = replace(Introduction(claim.guest_id), fresh=False)
            await introduce(clone.link, resume, ANSWER_S)
            assert await identity(clone) == claimed
            output, _ = await clone.run("date", "+%s.%N")
            assert abs(time.time() - float(output)) < 1
            assert (await clone.run_code("random.Random(7).random() == random.random()"))[1].text == "True"

    anyio.run(run)

"""Clones of one snapshot must not share what is meant to be random, nor forks of one sandbox.

The first draw counts, in a process that was already running when the snapshot was made: the waiting child of
the zygote. Measured without the reseed: the first draws of all clones are the same.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from forking import LIGHT, at_once, first_draw, let_wait
from vm_world import Daemon, build_image, new_home, run_daemon, sources

from casemate.sdk import Sandbox

FIRST_DRAWS = """
import os, uuid, random, json
import numpy
print(json.dumps({
    "urandom": os.urandom(16).hex(),
    "uuid4": str(uuid.uuid4()),
    "random": random.random(),
    "numpy": float(numpy.random.random()),
    "numpy.default_rng": float(numpy.random.default_rng().random()),
    "machine_id": open("/etc/machine-id").read(),
    "hostname": os.uname().nodename,
}))
"""
CLONES = 6
SNAPSHOTS = 4
FORKS = 3


def draw(daemon: Daemon, code: str = FIRST_DRAWS) -> dict[str, object]:
    with Sandbox.create(url=daemon.url) as sandbox:
        execution = sandbox.run_code(code)
        assert execution.error is None, execution.error
        found: dict[str, object] = json.loads(execution.logs.stdout)
        return found


def draws(daemon: Daemon) -> list[dict[str, object]]:
    with ThreadPoolExecutor(CLONES) as threads:
        return list(threads.map(lambda _: draw(daemon), range(CLONES)))


@pytest.mark.vm
def test_first_draws_of_clones_differ_pairwise(daemon: Daemon, no_trace: None) -> None:
    found = draws(daemon)
    for source in found[0]:
        values = [clone[source] for clone in found]
        assert len(set(map(str, values))) == CLONES, f"{source} is shared: {values}"


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.timeout(400)  # for as many builds
def test_without_the_reseed_the_same_draws_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, no_trace: None
) -> None:
    """The test above can fail: an agent built without the step that reseeds gives clones the same bytes.

    The guest's kernel reseeds by itself every few seconds, from the jitter of its interrupts. Where a snapshot was
    taken just before such a moment, its clones differ by that accident; another snapshot has another moment.
    """
    module = sources(tmp_path) / "guest/handshake.py"
    text = module.read_text()
    step = "machine.add_entropy(hello.entropy)"
    assert text.count(step) == 1
    module.write_text(text.replace(step, "pass"))
    seen: set[str] = set()
    for _ in range(SNAPSHOTS):
        seen |= what_is_shared(tmp_path_factory.mktemp("sabotaged"), tmp_path)
        if seen == {"clones", "copies"}:
            return
    pytest.fail(f"only {seen} drew the same")


def what_is_shared(folder: Path, sabotaged: Path) -> set[str]:
    """Whether two clones of a new snapshot draw the same first bytes; and a program that waits to, in forks."""
    with run_daemon(new_home(folder), PYTHONPATH=str(sabotaged)) as daemon:
        build_image(daemon)
        drawn = [draw(daemon, LIGHT)["urandom"] for _ in range(3)]
        with Sandbox.create(url=daemon.url) as parent:
            let_wait(parent)
            waited = [first_draws(parent) for _ in range(FORKS)]
    alike = {"clones": len(set(drawn)) < len(drawn), "copies": any(len(set(one)) < len(one) for one in waited)}
    return {kind for kind, found in alike.items() if found}


def first_draws(parent: Sandbox) -> list[str]:
    with ExitStack() as held:
        return at_once(first_draw, [held.enter_context(copy) for copy in parent.fork(2)])

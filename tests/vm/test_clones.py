"""Clones of one snapshot must not share what is meant to be random.

The first draw counts, in a process that was already running when the snapshot was made: the waiting child of
the zygote. Measured without the reseed: the first draws of all clones are the same.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vm_world import Daemon, build_image, new_home, run_daemon

import casemate
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


def draw(daemon: Daemon) -> dict[str, object]:
    with Sandbox.create(url=daemon.url) as sandbox:
        execution = sandbox.run_code(FIRST_DRAWS)
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
@pytest.mark.timeout(400)  # for as many builds
def test_without_the_reseed_the_same_draws_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, no_trace: None
) -> None:
    """The test above can fail: an agent built without the step that reseeds gives clones the same bytes.

    The guest's kernel reseeds by itself every few seconds, from the jitter of its interrupts. Where a snapshot was
    taken just before such a moment, its clones differ by that accident; another snapshot has another moment.
    """
    sources = tmp_path / "casemate"
    shutil.copytree(Path(casemate.__file__).parent, sources)
    module = sources / "guest/handshake.py"
    text = module.read_text()
    step = "machine.add_entropy(hello.entropy)"
    assert text.count(step) == 1
    module.write_text(text.replace(step, "pass"))
    assert any(shares_a_draw(tmp_path_factory.mktemp("sabotaged"), tmp_path) for _ in range(SNAPSHOTS))


def shares_a_draw(folder: Path, sources: Path) -> bool:
    """Whether two clones of a new snapshot, of an agent from *sources*, draw the same first bytes."""
    with run_daemon(new_home(folder), PYTHONPATH=str(sources)) as daemon:
        build_image(daemon)
        drawn = [draw(daemon)["urandom"] for _ in range(3)]
    return len(set(drawn)) < len(drawn)

"""What others wrote shows in a sandbox what a plain Jupyter showed of it: a sample, `make corpus` runs all."""

from __future__ import annotations

import json
import os
import random

import pytest
from tests.corpus import ours, recorded, sdists
from tests.corpus.normal import digest, normal
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.usefixtures("no_trace")]
CELLS = 60  # of the longest that is drawn
VERSIONS = (
    "import IPython, matplotlib, numpy, pandas, platform, json\n"
    "print(json.dumps({'python': platform.python_version()} | "
    "{module.__name__: module.__version__ for module in (IPython, matplotlib, numpy, pandas)}))"
)


@pytest.mark.parametrize("package", ["matplotlib", "pandas"])
def test_a_sandbox_shows_what_a_plain_jupyter_shows(package: str, daemon: Daemon) -> None:
    kept = recorded.read()
    names = [
        name
        for name, digests in kept.examples.items()
        if name.startswith(f"{package}:") and len(digests) <= CELLS and name not in recorded.NEED_PACKAGES
    ]
    drawn = random.Random(os.environ["CASEMATE_SEED"]).choice(sorted(names))
    try:
        (example,) = recorded.examples_of(kept, [drawn])
    except sdists.Unfetched as error:
        pytest.skip(f"the sdist of {package} can't be had: {error}")
    with Sandbox.create() as sandbox:
        versions = json.loads(sandbox.run_code(VERSIONS).logs.stdout)
    if versions != kept.versions:
        pytest.skip(f"recorded with {kept.versions}, the image has {versions}: python -m tests.corpus record")
    outputs, wrong = ours.run(example, image="python")
    assert wrong is None
    shown = [normal(cell) for cell in outputs]
    causes = recorded.causes()
    differing = {
        recorded.place(drawn, number): (example.cells[number], cell)
        for number, (cell, digests) in enumerate(zip(shown, kept.examples[drawn], strict=True))
        if digest(cell) != digests and recorded.place(drawn, number) not in causes
    }
    assert not differing

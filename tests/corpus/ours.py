"""Our half: the cells by ``run_notebook``, as ``casemate notebook run`` does it, each example in a fresh clone."""

from __future__ import annotations

from typing import Any

from nbformat import v4
from tests.corpus import sdists
from tests.corpus.selection import SEED, Example

from casemate.integrations.jupyter.notebook import run_notebook
from casemate.sdk import Client, Images, Sandbox
from casemate.sdk.code import SandboxDied

IMAGE = "casemate-corpus"
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
CELL_S = 240.0  # on an emulated processor, of which others use some


def has_image() -> bool:
    with Client() as client:
        return IMAGE in {image["name"] for image in Images(client).list()}


def make_image() -> None:
    """The image of Python with what the examples import beside, for all clones. Raises Unfetched."""
    with Sandbox.create() as sandbox:
        sandbox.files.put_folder(sdists.installed(sdists.GUEST), PACKAGES, user="root")
        sandbox.snapshot(IMAGE)


def run(example: Example, image: str = IMAGE) -> tuple[list[list[dict[str, Any]]], str | None]:
    """The outputs of each cell, and what there was wrong with the run itself."""
    nb = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in (SEED, *example.cells)])
    with Sandbox.create(image) as sandbox:
        done = run_notebook(nb, sandbox, language="python", keep_going=True, timeout_s=CELL_S)
    ended = [cell.execution.end for cell in done.cells if cell.execution is not None]
    died = next((f"the sandbox died: {end.message}" for end in ended if isinstance(end, SandboxDied)), None)
    return [cell["outputs"] for cell in nb["cells"][1:]], died

"""Run by the image's own Python: ``jupyter.py IN OUT``, notebooks by a plain nbclient and ipykernel.

IN is JSON, ``{name: [code, …]}``. OUT gets a line for each notebook, when it has run: its name, the processor's seconds
its kernel took, what there was wrong with the run itself, or null, and the outputs of each cell, as nbformat has them.
"""

import json
import platform
import resource
import sys

import IPython
import matplotlib
import nbformat
import numpy
import pandas
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

CELL_S = 60


def main() -> None:
    with open(sys.argv[1]) as given, open(sys.argv[2], "w") as out:
        print(json.dumps(versions()), file=out, flush=True)
        for name, cells in json.load(given).items():
            print(json.dumps([name, *run(cells)]), file=out, flush=True)


def versions() -> dict[str, str]:
    modules = {"IPython": IPython, "matplotlib": matplotlib, "numpy": numpy, "pandas": pandas}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}}


def run(cells: list[str]) -> tuple[float, "str | None", list[list[dict[str, object]]]]:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(nb, kernel_name="python3", allow_errors=True, timeout=CELL_S)
    wrong = None
    before = used()
    with client.setup_kernel():
        try:
            for index, cell in enumerate(nb.cells):
                client.execute_cell(cell, index)
        except (CellTimeoutError, DeadKernelError) as error:
            wrong = type(error).__name__
    return round(used() - before, 2), wrong, [cell.outputs for cell in nb.cells]


def used() -> float:
    """Of the kernels that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

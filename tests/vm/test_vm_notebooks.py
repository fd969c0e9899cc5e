"""``casemate notebook run`` in a real sandbox, beside nbclient with a kernel of this machine; bad ones: unit/cli."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v4

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]
CELLS = [
    "x = 6",
    "x * 7",
    "import sys\nprint('a'); print('b')\nprint('warn', file=sys.stderr)\nprint('c')\n(x, [x])",
    "from IPython.display import HTML, JSON, display\n"
    "h = display('old', display_id=True)\ndisplay(HTML('<b>hi</b>'))\nprint('after')",
    "h.update('new')",
    "JSON({'a': [1, None]})",
    "",
    "!echo from the shell",
    "%%time\nfor n in range(3): print(n)",
    "x;",
    "from IPython.display import Markdown\nMarkdown('# é')",
    "1/0",
    "print('ünï', flush=True)",
]


def notebook(*sources: str, **metadata: Any) -> Any:
    cells = [v4.new_markdown_cell("# A title"), *(v4.new_code_cell(source) for source in sources)]
    return v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, **metadata}
    )


def write(path: Path, nb: Any) -> Path:
    path.write_text(nbformat.writes(nb))
    return path


def casemate(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in words]
    return subprocess.run(
        [*CASEMATE, "notebook", "run", *words], capture_output=True, text=True, timeout=120, check=False, **more
    )


def by_nbclient(path: Path) -> Any:
    """The same notebook run by a plain kernel of this machine; in a process of its own, since it leaves sockets."""
    code = """if True:
        import sys, nbformat, nbclient
        nb = nbformat.read(sys.argv[1], as_version=4)
        nbclient.NotebookClient(nb, allow_errors=True, kernel_name="python3").execute()
        nbformat.write(nb, sys.argv[2])
    """
    out = path.with_suffix(".theirs.ipynb")
    subprocess.run([sys.executable, "-c", code, path, out], check=True, timeout=60, capture_output=True)
    return nbformat.read(out, as_version=4)


def form_of(cell: Any) -> Any:
    """What has to be the same: each output's kind and text but for times; of streams between two results each by
    itself, because a plain kernel sends what was written to the two in no order.
    """
    outputs: list[tuple[Any, ...]] = []
    for output in cell["outputs"]:
        kind = output["output_type"]
        if kind == "stream":
            text = re.sub(r"[\d.]+ [nµμum]?s\b", "T", output["text"]).replace("\r\n", "\n")  # its ! has a terminal
            streams = dict(outputs.pop()[1]) if outputs and outputs[-1][0] == kind else {}
            streams[output["name"]] = streams.get(output["name"], "") + text
            outputs.append((kind, sorted(streams.items())))
        elif kind == "error":
            outputs.append((kind, output["ename"], output["evalue"]))
        else:
            outputs.append((kind, dict(output["data"]), dict(output["metadata"]), output.get("execution_count")))
    return cell["execution_count"], outputs


def test_a_notebook_comes_back_as_nbclient_writes_it(sandbox: Sandbox, tmp_path: Path) -> None:
    """Values, streams, updates across cells, magics, an error that does not end it; valid, with counts and times."""
    source = write(tmp_path / "nb.ipynb", notebook(*CELLS))
    theirs = by_nbclient(source)
    done = casemate("--sandbox", sandbox.id, "--keep-going", "--json", source)
    assert done.returncode == 1, done.stderr
    ours = nbformat.read(tmp_path / "nb.out.ipynb", as_version=4)
    nbformat.validate(ours)
    for our, their in zip(ours.cells[1:], theirs.cells[1:], strict=True):
        assert form_of(our) == form_of(their), our.source
        assert our.metadata.get("execution", {}).keys() == their.metadata.get("execution", {}).keys()
    assert ours.metadata.language_info.keys() == theirs.metadata.language_info.keys()
    states = [cell["state"] for cell in json.loads(done.stdout)["cells"]]
    assert states == ["ok"] * 6 + ["skipped"] + ["ok"] * 4 + ["failed", "ok"]
    assert f"cell 12/{len(CELLS)}:" in done.stderr
    assert "failed: ZeroDivisionError: division by zero" in done.stderr

"""``casemate notebook run`` in a real sandbox, beside nbclient with a kernel of this machine; bad ones: unit/cli."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v4
from vm_world import Daemon

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
    "from IPython.display import clear_output\n"
    "for n in range(3):\n    clear_output(wait=True)\n    print(n)\n    display(n, display_id=n == 2 and 'last')",
    "display('later', display_id='last'); 1/0",
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
    assert states == ["ok"] * 6 + ["skipped"] + ["ok"] * 5 + ["failed", "ok"]
    assert f"cell 13/{len(CELLS)}:" in done.stderr
    assert "failed: ZeroDivisionError: division by zero" in done.stderr


def test_parameters_time_outs_and_another_language(sandbox: Sandbox, tmp_path: Path) -> None:
    there = ("--sandbox", sandbox.id)
    hang = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    nb = notebook("region, n = 'south', 1", "region * n", hang, "'on'")
    nb.cells[1].metadata.tags = ["parameters"]
    source = write(tmp_path / "nb.ipynb", nb)
    words = ("--param", "n=2", "--param", "region=é'", "--timeout", "1", "--keep-going", "--show", "-q")
    done = casemate(source, *words, *there)
    assert (done.returncode, done.stdout) == (124, "\"é'é'\"\nbegun\n'on'\n")
    ours = nbformat.read(tmp_path / "nb.out.ipynb", as_version=4)
    assert ours.metadata.casemate.parameters == {"n": 2, "region": "é'"}
    assert [output.get("ename") for output in ours.cells[4].outputs] == [None, "TimedOut"]
    assert ours.cells[5].outputs[0].data == {"text/plain": "'on'"}
    spec = {"name": "bash", "display_name": "Bash", "language": "bash"}
    shell = write(tmp_path / "sh.ipynb", notebook("echo $who\nfalse", kernelspec=spec))
    assert casemate(shell, "-p", "who=me too", "--in-place", *there).returncode == 1
    found = nbformat.read(shell, as_version=4).cells
    assert [cell.cell_type for cell in found] == ["code", "markdown", "code"]
    assert found[2].outputs[0].text == "me too\n"
    assert found[2].outputs[1].ename == "ExitStatus"
    assert [context.context_id for context in sandbox.contexts.list()] == ["default"]  # ours have gone


def test_ctrl_c_leaves_a_whole_notebook_and_no_sandbox(daemon: Daemon, no_trace: None, tmp_path: Path) -> None:
    """In a sandbox of its own: what was done is there, what was begun too."""
    (tmp_path / "data.csv").write_text("6,7")
    cells = ("print(open('data.csv').read())", "print('begun', flush=True)\nwhile True: pass", "1")
    source = write(tmp_path / "nb.ipynb", notebook(*cells))
    words = [*CASEMATE, "notebook", "run", source, "--put", tmp_path / "data.csv", "--keep-going", "--show"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == [b"6,7\n", b"begun\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    done = nbformat.read(tmp_path / "nb.out.ipynb", as_version=4)
    nbformat.validate(done)
    ends = [[output.get("text") or output.ename for output in cell.outputs] for cell in done.cells[1:]]
    assert ends == [["6,7\n"], ["begun\n", "KeyboardInterrupt"], []]
    assert not Sandbox.list()


HOSTILE = [
    "import sys\nsys.stdout.buffer.write(b'\\xff\\x1b[2J\\x00' * 10); sys.stdout.flush()",
    "from IPython.display import display\ndisplay({'text/plain': '1'}, raw=True, display_id='\\x00/../\\ud800')",
    "display({'text/plain': '\\ud800', 'application/x+json': '\\ud800'}, raw=True)",
    "display({'no mime': 'x', 'text/html': 'y', 'image/png': 'not base64'}, raw=True)",
    "class E(Exception):\n    def __str__(self): return '\\ud800\\x1b[2J' * 100_000\nraise E",
    "display('z' * 5_000_000)",
    "import os; os._exit(3)",
    "'alive'",
    "print(('y' * 999 + '\\n') * 9000 + 'end')",
]


def test_whatever_cells_show_the_notebook_is_valid_and_bounded(sandbox: Sandbox, tmp_path: Path) -> None:
    source = write(tmp_path / "nb.ipynb", notebook(*HOSTILE))
    done = casemate("--sandbox", sandbox.id, "--keep-going", source)
    assert done.returncode == 1, done.stderr
    assert "\x1b" not in done.stderr
    ours = nbformat.read(tmp_path / "nb.out.ipynb", as_version=4)
    nbformat.validate(ours)
    assert (tmp_path / "nb.out.ipynb").stat().st_size < 40 * 2**20
    assert ours.cells[7].outputs[-1].ename == "ContextDied"
    assert ours.cells[8].outputs[0].data == {"text/plain": "'alive'"}
    flood = ours.cells[9].outputs
    assert [output.name for output in flood] == ["stdout", "stderr", "stdout"]
    assert "characters of output are left out here" in flood[1].text
    assert flood[2].text.endswith("yyy\nend\n")

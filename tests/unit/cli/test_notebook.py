"""``casemate notebook run`` over a guest that does as told; with a real one, beside nbclient: tests/vm."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v4
from tests.unit.cli.conftest import Served
from tests.unit.cli.test_repl import STEERING, busy, plain_terminal, result
from tests.vm.local_terminal import at_terminal

from casemate.integrations.jupyter.notebook import run_notebook
from casemate.sdk import Sandbox

__all__ = ["plain_terminal"]
RUN = [sys.executable, "-m", "casemate.cli", "notebook", "run"]
SECRET = 0o600


def notebook(path: Path, *sources: str, tags: dict[int, str] | None = None, **metadata: Any) -> Path:
    cells = [v4.new_code_cell(source) for source in sources]
    for at, tag in (tags or {}).items():
        cells[at].metadata.tags = [tag]
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def run(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RUN, *map(str, words)], input=stdin, capture_output=True, timeout=60, check=False)


def read(path: Path) -> Any:
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    return nb


def texts(cell: Any) -> list[str]:
    return [output.get("text") or output.get("ename") or str(output["data"]) for output in cell.outputs]


def test_the_first_failure_ends_it_and_its_status_says_which(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out one\nerr two", "1/0", "out three")
    done = run(source)
    assert done.returncode == 1
    assert done.stdout == b""
    assert [line.split(b" s, ")[1] for line in done.stderr.splitlines()] == [
        b"ok",
        b"failed: ZeroDivisionError: division",
    ]
    nb = read(tmp_path / "a.out.ipynb")
    assert [texts(cell) for cell in nb.cells] == [["one\n", "two\n"], ["ZeroDivisionError"], []]
    assert [cell.execution_count for cell in nb.cells] == [1, 2, None]
    assert nb.metadata.casemate.image.startswith("python")
    assert not list(Sandbox.list())


def test_it_goes_on_where_told_and_tags_are_heeded(served: Served, tmp_path: Path) -> None:
    tags = {0: "raises-exception", 1: "skip-execution"}
    source = notebook(tmp_path / "a.ipynb", "1/0", "out no", "", "sleep 9", "out yes", tags=tags)
    with served.create() as sandbox:
        done = run(source, "--keep-going", "--timeout", "0.3", "--json", "-q", "--sandbox", sandbox.id)
        assert done.stderr == b""
        assert done.returncode == 124
        summary = json.loads(done.stdout)
        assert [cell["state"] for cell in summary["cells"]] == ["allowed", "skipped", "skipped", "failed", "ok"]
        assert (summary["ok"], summary["out"]) == (False, str(tmp_path / "a.out.ipynb"))
        assert summary["cells"][3]["error"]["name"] == "TimedOut"
        assert not sandbox.contexts.list()
        assert (
            run(notebook(tmp_path / "b.ipynb", "1/0", tags={0: "raises-exception"}), "--sandbox", sandbox.id).returncode
            == 0
        )
        assert run(notebook(tmp_path / "c.ipynb", "memory"), "--sandbox", sandbox.id).returncode == 137


def test_where_it_goes(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out hi")
    os.chmod(source, SECRET)
    (tmp_path / "link.ipynb").symlink_to("a.ipynb")
    before = source.read_bytes()
    with served.create() as sandbox:
        there = ("--sandbox", sandbox.id)
        for words in (("--out", source), ("--out", tmp_path / "link.ipynb"), ("--out", f"{tmp_path}/./a.ipynb")):
            refused = run(source, *words, *there)
            assert refused.returncode == 1
            assert b"--in-place" in refused.stderr
        assert source.read_bytes() == before
        filtered = run("-", *there, stdin=before)
        assert (filtered.returncode, texts(nbformat.reads(filtered.stdout.decode(), 4).cells[0])) == (0, ["hi\n"])
        assert run(source, "--out", "-", *there).stdout.startswith(b"{")
        assert run(tmp_path / "link.ipynb", "--in-place", *there).returncode == 0
        assert (tmp_path / "link.ipynb").is_symlink()
        assert texts(read(source).cells[0]) == ["hi\n"]
        assert source.stat().st_mode & 0o777 == SECRET
        assert run(source, "--out", "/dev/null", *there).returncode == 0
        assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb", "link.ipynb"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["none.ipynb"], "No such file"),
        (["text.ipynb"], "not JSON"),
        (["a.ipynb", "--out", "none/a.ipynb"], "mkdir -p none"),
        (["a.ipynb", "--out", "."], "is a folder"),
        (["a.ipynb", "--out", "b.ipynb", "--in-place"], "--in-place"),
        (["a.ipynb", "--out", "-", "--json"], "--out FILE"),
        (["a.ipynb", "--show", "--json"], "give one"),
        (["a.ipynb", "--param", "x"], "not K=V"),
        (["a.ipynb", "--param", "class=1"], "parameter class"),
        (["r.ipynb", "--param", "x=1"], "jupyter:ir"),
        (["a.ipynb", "--put", "none.csv"], "none.csv"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEMATE_URL", "unix:///nowhere")
    notebook(tmp_path / "a.ipynb", "out hi")
    notebook(tmp_path / "r.ipynb", "1", kernelspec={"name": "ir", "display_name": "R", "language": "R"})
    (tmp_path / "text.ipynb").write_text("hello")
    done = run(*words)
    assert done.returncode == 1
    assert why in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.out.ipynb"))


def test_parameters_and_files_go_in_and_files_come_out(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("1,2")
    notebook(
        tmp_path / "a.ipynb", "out a", "out b", tags={0: "parameters"}, kernelspec={"name": "bash", "display_name": "x"}
    )
    done = run("a.ipynb", "-p", "n=7", "-p", "word=out", "--put", "data.csv", "--get", "data.csv:back.csv")
    assert done.returncode == 0, done.stderr
    nb = read(tmp_path / "a.out.ipynb")
    assert nb.cells[1].source == "# Parameters\nn=7\nword=out"
    assert nb.metadata.casemate.parameters == {"n": 7, "word": "out"}
    assert nb.metadata.language_info.name == "bash"
    assert (tmp_path / "back.csv").read_text() == "1,2"


def test_what_could_not_be_run_leaves_the_outputs_of_before(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out one")
    with served.create() as sandbox:
        assert run(source, "--in-place", "--sandbox", sandbox.id).returncode == 0
        before = source.read_bytes()
        refused = run(source, "--in-place", "--timeout", "-1", "--sandbox", sandbox.id)
        assert (refused.returncode, source.read_bytes()) == (1, before), refused.stderr


def test_ctrl_c_ends_the_run_with_what_there_is(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out one", "out two\nhang", "out three")
    with served.create() as sandbox:
        words = [*RUN, str(source), "--keep-going", "--sandbox", sandbox.id]
        process = subprocess.Popen(words, stderr=subprocess.PIPE)
        assert process.stderr
        assert process.stderr.readline().endswith(b", ok\n")
        assert texts(read(tmp_path / "a.out.ipynb").cells[0]) == ["one\n"]  # already
        busy(sandbox)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    nb = read(tmp_path / "a.out.ipynb")
    assert [texts(cell) for cell in nb.cells] == [["one\n"], ["two\n", "KeyboardInterrupt"], []]


def test_a_sandbox_that_ends_ends_the_run_with_what_there_is(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out one\nhang", "out two")
    with served.create() as sandbox:
        process = subprocess.Popen([*RUN, str(source), "--keep-going", "--sandbox", sandbox.id], stderr=subprocess.PIPE)
        busy(sandbox)
        Sandbox.connect(sandbox.id).kill()
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1, said
    assert texts(read(tmp_path / "a.out.ipynb").cells[0]) == ["one\n", "SandboxDied"]


@pytest.mark.usefixtures("plain_terminal")
def test_shown_on_a_terminal_as_the_prompt_shows_it(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
    hostile = f"out {STEERING}\n{result({'text/plain': STEERING})}\n{result({'image/png': png}, 'display')}"
    source = notebook(tmp_path / "a.ipynb", hostile, "1/0")
    with (
        served.create() as sandbox,
        at_terminal(["notebook", "run", str(source), "--show", "--sandbox", sandbox.id]) as user,
    ):
        assert user.wait_end() == 1
    assert b"\x1b]" not in user.screen
    assert b"red" in user.screen
    assert b"picture-1.png]" in user.screen
    assert b"cell 2/2: 0.0 s, failed: ZeroDivisionError: division" in user.screen
    outputs = read(tmp_path / "a.out.ipynb").cells[0].outputs
    assert outputs[0].text == f"{STEERING}\n"  # a file is no terminal


def test_the_bar_says_what_failed(served: Served, tmp_path: Path) -> None:
    source = notebook(tmp_path / "a.ipynb", "out one", "1/0", "sleep 0.3")
    words = ["notebook", "run", str(source), "--keep-going"]
    with at_terminal(words) as user:
        assert user.wait_end() == 1
    assert b"3/3" in user.screen
    assert b"cell 2/3: " in user.screen
    assert b"cell 1/3: " not in user.screen


def test_from_python(served: Served) -> None:
    nb = v4.new_notebook(cells=[v4.new_markdown_cell("#"), v4.new_code_cell("out hi"), v4.new_code_cell("1/0")])
    told: list[tuple[int, str]] = []
    with served.create() as sandbox:
        done = run_notebook(nb, sandbox, on_cell=lambda cell: told.append((cell.index, cell.state)))
        assert not sandbox.contexts.list()
    assert told == [(1, "running"), (1, "ok"), (2, "running"), (2, "failed")]
    assert not done.ok
    assert [cell.exit_code for cell in done.failed] == [1]
    assert nb.cells[1].outputs[0].text == "hi\n"
    nbformat.validate(nb)

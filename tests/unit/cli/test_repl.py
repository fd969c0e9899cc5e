"""``casemate repl`` and ``casemate context`` over a guest that says whatever it likes; with real machines: tests/vm."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Served
from tests.vm.local_terminal import Keyboard, at_terminal

from casemate.sdk import Sandbox

pytestmark = pytest.mark.usefixtures("plain_terminal")
CASEMATE = [sys.executable, "-m", "casemate.cli"]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01" + bytes(20)).decode()
CTRL_C, CTRL_D = b"\x03", b"\x04"
STEERING = "\x1b]0;mine\x07\x1b[2J\x1b[6n\x9b1A\x08\x1b[31mred"


@pytest.fixture
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's terminal shows, and answers nothing: prompt_toolkit is not to ask it where the cursor is."""
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    for name in ("NO_COLOR", "TMUX", "STY", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)


def result(data: dict[str, Any], kind: str = "result") -> str:
    return "result " + json.dumps({"type": kind, "data": data, "metadata": {}, "update": False, "cut": {}})


def table(rows: int) -> dict[str, Any]:
    body = {
        "columns": [{"name": "na[b]me", "type": "object"}, {"name": "n", "type": "int64"}],
        "rows": [[f"row {n}", n] for n in range(rows)],
        "shape": [rows, 2],
    }
    return {"text/plain": "as text", "application/vnd.casemate.table+json": body}


def piped(cells: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CASEMATE, "repl", *words], input=cells.encode(), capture_output=True, timeout=60, check=False
    )


@contextmanager
def prompt(*words: str) -> Iterator[Keyboard]:
    with at_terminal(["repl", *words]) as user:
        user.wait_for(b"In [")
        yield user


def text_of(screen: bytes) -> str:
    """What a person sees of it, in the order it was written."""
    return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])", "", screen.decode(errors="replace"))


def test_cells_from_a_pipe(served: Served) -> None:
    with served.create() as sandbox:
        done = piped(f"out one\nerr two\n# %%\n{result({'text/plain': '42'})}\n", sandbox.id)
        assert (done.stdout, done.stderr, done.returncode) == (b"one\n42\n", b"two\n", 0)
        assert piped("1/0\n# %%\nout fine", sandbox.id).returncode == 0
        failed = piped("out fine\n# %%\n1/0", sandbox.id)
        assert (failed.stdout, failed.returncode) == (b"fine\n", 1)
        assert failed.stderr == b"tb\n"  # as the guest has it


def test_through_a_pipe_bytes_come_as_they_are(served: Served) -> None:
    with served.create() as sandbox:
        cell = f"out {STEERING}\n" + result({"text/plain": STEERING, "image/png": PNG})
        done = piped(cell, sandbox.id)
        assert done.stdout.count(STEERING.encode()) == 2
        assert b"\x1b_G" not in done.stdout
        path = re.search(rb"\[image/png: (.*)\]", done.stdout)
        assert path
        saved = Path(path[1].decode())
        assert saved.read_bytes() == base64.b64decode(PNG)
        saved.unlink()
        saved.parent.rmdir()


def test_a_new_sandbox_is_gone_afterwards(served: Served) -> None:
    assert piped("out hello").stdout == b"hello\n"
    with served.create() as sandbox:
        assert [box.id for box in type(sandbox).list(url=served.url)] == [sandbox.id]


def test_each_cell_runs_when_the_next_begins(served: Served) -> None:
    with served.create() as sandbox:
        process = subprocess.Popen([*CASEMATE, "repl", sandbox.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"out one\n# %%\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        process.stdin.write(b"out two\n")
        assert process.communicate(timeout=30)[0] == b"two\n"


def test_a_prompt_with_output_results_and_errors(served: Served) -> None:
    with served.create() as sandbox, prompt(sandbox.id) as user:
        user.type(b"out hello\r")
        user.wait_for(b"hello\r\n")
        user.wait_for(b"In [2]:")
        user.type(b"1/0\r")
        user.wait_for(b"tb")
        user.wait_for(b"In [3]:")
        user.type(CTRL_C)  # nothing runs: nothing happens
        user.type(b"exit\r")
        assert user.wait_end() == 0


def test_what_the_guest_writes_does_not_steer_the_terminal(served: Served) -> None:
    """Output, errors, results, tables, traceback: nothing but colours comes through."""
    hostile = {"columns": [{"name": STEERING, "type": "x"}], "rows": [[STEERING + "[red]x[/red]"]], "shape": [1, 1]}
    cell = (
        f"out {STEERING}\nerr {STEERING}\n{result({'text/plain': STEERING})}\n"
        f"{result({'application/vnd.casemate.table+json': hostile})}\nout done\n"
    )
    with served.create() as sandbox, prompt(sandbox.id) as user:
        user.type(b"\x1b[200~" + cell.encode() + b"\x1b[201~")  # pasted
        user.type(b"\r")
        user.wait_for(b"done\r\n")
        user.wait_for(b"In [2]:")
        user.type(CTRL_D)
        user.wait_end()
    shown = user.screen
    assert b"\x1b]0;mine" not in shown
    assert b"\x1b]" not in shown
    assert b"\x07" not in shown
    assert b"[red]x[/red]" in shown.rpartition(b"...:")[2]  # rich's markup is not the guest's to use


def test_tables_are_drawn(served: Served) -> None:
    with served.create() as sandbox, prompt(sandbox.id) as user:
        user.type(result(table(100)).encode() + b"\r")
        shown = text_of(user.wait_for(b"In [2]"))
        assert "na[b]me" in shown
        assert "row 29" in shown
        assert "row 30" not in shown
        assert "30 of 100 rows, 2 of 2 columns" in shown
        assert "\nas text" not in shown
        user.type(CTRL_D)
        assert user.wait_end() == 0


def test_pictures_are_saved_or_shown(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = result({"image/png": PNG, "text/plain": "<Figure>"}, "display").encode() + b"\r"
    with served.create() as sandbox:
        with prompt("--save-to", str(tmp_path), sandbox.id) as user:
            user.type(cell)
            user.wait_for(b"[image/png: ")
            user.wait_for(b"picture-1.png]")
        assert (tmp_path / "picture-1.png").read_bytes() == base64.b64decode(PNG)
        monkeypatch.setenv("KITTY_WINDOW_ID", "1")
        with prompt(sandbox.id) as user:
            user.type(cell)
            user.wait_for(b"\x1b_Ga=T,f=100,m=0;" + PNG.encode())


def test_ctrl_c_interrupts_and_the_prompt_comes_back(served: Served) -> None:
    with served.create() as sandbox, prompt(sandbox.id) as user:
        user.type(b"hang\r")
        busy(sandbox)
        user.type(CTRL_C)
        user.wait_for(b"interrupted; its variables are kept")
        user.wait_for(b"In [2]")
        user.type(b"hang hard\r")
        busy(sandbox)
        user.type(CTRL_C)
        time.sleep(0.5)
        user.type(CTRL_C)
        user.wait_for(b"its variables are lost")
        user.wait_for(b"In [3]:")
        user.type(CTRL_D)
        assert user.wait_end() == 0


def busy(sandbox: Any) -> None:
    until = time.monotonic() + 20
    while not [context for context in sandbox.contexts.list() if context.state == "busy"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_tab_completes_in_the_guest(served: Served) -> None:
    with served.create() as sandbox, prompt(sandbox.id) as user:
        user.type(b"out a\r")
        user.wait_for(b"In [2]")
        user.type(b"pr\t")
        user.wait_for(b"property")
        user.type(b"\t\r")
        user.type(CTRL_C)
        user.type(CTRL_D)


def test_a_context_of_another_language_goes_with_the_prompt(served: Served) -> None:
    with served.create() as sandbox:
        done = piped("out hello", "--language", "bash", sandbox.id)
        assert (done.stdout, done.returncode) == (b"hello\n", 0)
        assert not sandbox.contexts.list()
        none = piped("out hello", "--language", "cobol", sandbox.id)
        assert (none.stdout, none.returncode) == (b"", 1)
        assert b"cobol" in none.stderr


def test_a_sandbox_that_ends_ends_the_prompt(served: Served) -> None:
    with served.create() as sandbox:
        process = subprocess.Popen(
            [*CASEMATE, "repl", sandbox.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin
        process.stdin.write(b"out one\nhang\n# %%\nout two\n")
        process.stdin.close()
        process.stdin = None
        busy(sandbox)
        Sandbox.connect(sandbox.id).kill()
        out, err = process.communicate(timeout=30)
        assert (out, process.returncode) == (b"one\n", 1)
        assert re.fullmatch(rb"casemate: the sandbox ended: .*\n", err)


def test_a_context_that_is_gone_is_said_at_the_prompt(served: Served) -> None:
    with served.create() as sandbox, prompt("--context", "none", sandbox.id) as user:
        user.type(b"out a\r")
        user.wait_for(b"casemate: error: ")
        user.wait_for(b"In [1]:")
        user.type(CTRL_D)
        assert user.wait_end() == 0


def test_a_killed_prompt_leaves_no_sandbox(served: Served) -> None:
    process = subprocess.Popen([*CASEMATE, "repl"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"out one\n# %%\nhang\n# %%\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 5
    while Sandbox.list():
        assert time.monotonic() < until
        time.sleep(0.05)


def context(*words: str) -> str:
    done = subprocess.run([*CASEMATE, "context", *words], capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contexts_by_hand(served: Served) -> None:
    with served.create() as sandbox:
        made = context("create", sandbox.id, "--language", "bash", "--cwd", "/tmp", "--env", "A=b").strip()
        found = json.loads(context("ls", sandbox.id, "--json"))["contexts"]
        assert [(c["context_id"], c["language"], c["cwd"]) for c in found] == [(made, "bash", "/tmp")]
        assert made in context("ls", sandbox.id)
        asked = {"_CASEMATE_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
        asked["COMP_WORDS"] = f"casemate context rm {sandbox.id} {made[:3]}"
        done = subprocess.run(CASEMATE, env=os.environ | asked, capture_output=True, timeout=60, check=False)
        assert done.stdout.decode().split() == [made]
        assert context("restart", sandbox.id, made) == context("interrupt", sandbox.id, made) == f"{made}\n"
        context("rm", sandbox.id, made)
        hostile = context("create", sandbox.id, "--cwd", f"/tmp/{STEERING}").strip()
        assert "\x1b" not in context("ls", sandbox.id)
        context("rm", sandbox.id, hostile)
        assert json.loads(context("ls", "--json", sandbox.id)) == {"contexts": []}

"""``casemate repl`` at a real interpreter; everything a guest could do to a terminal: unit/cli/test_repl.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from local_terminal import at_terminal
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
CASEMATE = [sys.executable, "-m", "casemate.cli"]


def test_a_prompt_as_python_has_it(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several lines, completion, an error, Ctrl-C with the state kept, a table, a picture."""
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with at_terminal(["repl", "--save-to", str(tmp_path), sandbox.id]) as user:
        user.wait_for(b"In [1]:")
        user.type(b"for x in range(3):\rprint('line', x)\r\r")
        user.wait_for(b"line 0\r\nline 1\r\nline 2\r\n")
        user.wait_for(b"In [2]:")
        user.type(b"some_long_name = 6 * 7\r")
        user.wait_for(b"In [3]:")
        user.type(b"some_lo\t")
        user.wait_for(b"ng_name")  # the rest of the one name there is
        user.type(b"\r")
        user.wait_for(b"42\r\n")
        user.wait_for(b"In [4]:")
        user.type(b"1/0\r")
        user.wait_for(b"ZeroDivisionError")
        user.wait_for(b"In [5]:")
        user.type(b"\x1b[200~print('star' + 'ted', flush=True)\nwhile True: pass\x1b[201~\r")  # pasted
        user.wait_for(b"started\r\n")
        user.type(b"\x03")
        user.wait_for(b"In [6]:")
        user.type(b"import pandas as pd; pd.DataFrame({'num' + 'ber': [some_long_name, 1]})\r")
        user.wait_for(b"number")
        user.wait_for(b"42")
        user.wait_for(b"In [7]:")
        user.type(b"import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()\r")
        user.wait_for(b"picture-1.png]")
        user.wait_for(b"In [8]:")
        user.type(b"\x04")
        assert user.wait_end() == 0
    assert (tmp_path / "picture-1.png").read_bytes().startswith(b"\x89PNG")


def test_from_a_pipe_in_a_sandbox_of_its_own(daemon: Daemon, no_trace: None) -> None:
    cells = b"import sys\nx = 6\n# %%\nprint(x * 7); print('no', file=sys.stderr)\n# %%\nx\n"
    done = subprocess.run([*CASEMATE, "repl"], input=cells, capture_output=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"42\n6\n", b"no\n", 0)
    assert not Sandbox.list()
    failed = subprocess.run([*CASEMATE, "repl"], input=b"1/0", capture_output=True, timeout=120, check=False)
    assert failed.returncode == 1
    assert b"ZeroDivisionError" in failed.stderr

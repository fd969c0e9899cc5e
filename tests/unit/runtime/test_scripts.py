"""A script run by a child of the zygote can't be told from `python3 x.py`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from zygote_bench import Bench
from zygote_scripts import SCRIPTS


def run_plainly(
    bench: Bench, argv: list[str], cwd: Path, env: dict[str, str], stdin: bytes
) -> tuple[bytes, bytes, int]:
    done = subprocess.run(
        ["python3", *argv],
        executable=bench.python,
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        timeout=60,
        start_new_session=True,
    )
    return comparable(done.stdout), comparable(done.stderr), done.returncode


def comparable(output: bytes) -> bytes:
    """Without addresses, thread ids and the list of extension modules that a fault dump ends with."""
    output = re.sub(rb"0x[0-9a-f]{8,}|(?<=started )\d+", b"ADDRESS", output)
    return re.sub(rb"\n\nExtension modules: .*", b"", output)


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_bytes_and_status(bench: Bench, tmp_path: Path, name: str) -> None:
    script = SCRIPTS[name]
    (tmp_path / "x.py").write_bytes(script.code.encode(script.encoding))
    (tmp_path / "neighbour.py").write_text("NAME = 'neighbour'\n")
    argv = [script.path or "x.py", *script.args]
    env = bench.env(**script.env)
    plain = run_plainly(bench, argv, tmp_path, env, script.stdin)
    warm = bench.run(argv, tmp_path, env, script.stdin)
    assert (comparable(warm.stdout), comparable(warm.stderr), warm.returncode) == plain


def test_children_are_warm(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import sys; print('wave' in sys.modules)")
    assert bench.zygote.about["warm"] is True
    assert bench.run(["x.py"], tmp_path, bench.env()).stdout == b"True\n"


def test_environment_that_needs_a_new_interpreter_gets_one(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import sys; print('wave' in sys.modules, hash('a'))")
    env = bench.env(PYTHONHASHSEED="7")
    plain = run_plainly(bench, ["x.py"], tmp_path, env, b"")
    warm = bench.run(["x.py"], tmp_path, env)
    assert (warm.stdout, warm.stderr, warm.returncode) == plain

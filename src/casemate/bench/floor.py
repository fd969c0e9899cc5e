"""This end of the programs in ``bench/``: children that are told the name of an act and answer with its time."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import casemate
from casemate.bench.rows import Samples

ANSWER_S = 180.0
END_S = 30.0
PROGRAMS = Path(casemate.__file__).resolve().parents[2] / "bench"
FLOOR, KERNEL = PROGRAMS / "floor.py", PROGRAMS / "kernel.py"


class Floor:
    """None where the program is not there: it comes with the checkout, not with the package."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self._process = process

    @property
    def is_there(self) -> bool:
        return self._process is not None

    def measure(self, act: str, into: Samples) -> None:
        """One sample. A floor that does not answer any more is not asked again."""
        if self._process is None:
            return
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{act}\n".encode())
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
                raise OSError(f"no answer within {ANSWER_S:g} s")
            answer = json.loads(self._process.stdout.readline() or b'{"error": "it ended"}')
        except (OSError, ValueError) as error:
            into.errors.append(f"floor: {error}")
            self._process.kill()
            self._process.wait()
            self._process = None
            return
        if "ms" in answer:
            into.ms.append(float(answer["ms"]))
        else:
            into.errors.append(f"floor: {answer.get('error')}")


@contextmanager
def open_floor(clone: Mapping[str, Any] | None) -> Iterator[Floor]:
    """*clone*: what ``casemate image inspect --json`` says of how a clone is started."""
    if clone is None or not FLOOR.is_file():
        yield Floor(None)
        return
    with tempfile.NamedTemporaryFile("w", prefix="casemate-clone-", suffix=".json") as file:
        json.dump(clone, file)
        file.flush()
        with _open_program(FLOOR, file.name) as floor:
            yield floor


@contextmanager
def open_kernel(cells: Mapping[str, str]) -> Iterator[Floor]:
    """The acts of ``bench/kernel.py``, which runs *cells*; None of them where its libraries are not installed."""
    wanted = ("jupyter_client", "ipykernel", "pandas", "matplotlib")
    if not KERNEL.is_file() or not all(importlib.util.find_spec(name) for name in wanted):
        yield Floor(None)
        return
    with _open_program(KERNEL, json.dumps(cells)) as kernel:
        yield kernel


@contextmanager
def _open_program(program: Path, argument: str) -> Iterator[Floor]:
    process = subprocess.Popen(
        [sys.executable, "-I", str(program), argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Floor(process)
    finally:
        assert process.stdin
        assert process.stdout
        process.stdin.close()  # it ends what it started and itself
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

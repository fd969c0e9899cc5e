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
FLOOR, KERNEL, FIRECRACKER = (PROGRAMS / name for name in ("floor.py", "kernel.py", "firecracker.py"))


class Floor:
    """None where the program is not there: it comes with the checkout, not with the package."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self._process = process

    @property
    def is_there(self) -> bool:
        return self._process is not None

    def measure(self, act: str, into: Samples) -> None:
        """One sample."""
        if self._process is None:
            return
        answer = self.ask(act)
        if "ms" in answer:
            into.ms.append(float(answer["ms"]))
        else:
            into.errors.append(f"floor: {answer.get('error')}")

    def ask(self, act: str) -> dict[str, Any]:
        """Its answer; one with an ``error`` when there is none: then it is not asked again."""
        if self._process is None:
            return {"error": "it is not there"}
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{act}\n".encode())
            self._process.stdin.flush()
            return self.hear()
        except OSError as error:
            return self._given_up(error)

    def hear(self) -> dict[str, Any]:
        """What it says next, as ``ask`` has it."""
        if self._process is None:
            return {"error": "it is not there"}
        assert self._process.stdout
        try:
            if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
                raise OSError(f"no answer within {ANSWER_S:g} s")
            answer = json.loads(self._process.stdout.readline() or b'{"error": "it ended"}')
        except (OSError, ValueError) as error:
            return self._given_up(error)
        return answer if isinstance(answer, dict) else {"error": "no answer"}

    def _given_up(self, error: Exception) -> dict[str, Any]:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        return {"error": str(error)}


@contextmanager
def open_floor(clone: Mapping[str, Any] | None) -> Iterator[Floor]:
    """*clone*: what ``casemate image inspect --json`` says of how a clone is started."""
    if clone is None or "argv" not in clone or not FLOOR.is_file():  # it knows how a clone of QEMU's is started
        yield Floor(None)
        return
    with tempfile.NamedTemporaryFile("w", prefix="casemate-clone-", suffix=".json") as file:
        json.dump(clone, file)
        file.flush()
        with open_program(str(FLOOR), file.name) as floor:
            yield floor


@contextmanager
def open_kernel(cells: Mapping[str, str]) -> Iterator[Floor]:
    """The acts of ``bench/kernel.py``, which runs *cells*; None of them where its libraries are not installed."""
    wanted = ("jupyter_client", "ipykernel", "pandas", "matplotlib")
    if not KERNEL.is_file() or not all(importlib.util.find_spec(name) for name in wanted):
        yield Floor(None)
        return
    with open_program(str(KERNEL), json.dumps(cells)) as kernel:
        yield kernel


@contextmanager
def open_program(*words: str) -> Iterator[Floor]:
    """A program that answers, by the words that Python is given for it; ended with the block."""
    process = subprocess.Popen([sys.executable, "-I", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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

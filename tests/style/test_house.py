"""The house rules that a program can check."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
SOURCE = HERE / "src" / "casemate"
ROOMS = sorted(p.parent for p in SOURCE.glob("*/__init__.py"))
MODULES = sorted(p for p in SOURCE.rglob("*.py") if "__pycache__" not in p.parts)
README_LINES = 14
FILE_LINES = 500
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def relative(path: Path) -> str:
    return str(path.relative_to(HERE))


def test_imports_go_one_way() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [tool, "--config", ".importlinter.toml", "--no-cache"],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for(room: Path) -> None:
    readme = room / "README.md"
    assert readme.is_file(), f"{relative(room)} has no README.md"
    lines = readme.read_text().splitlines()
    assert len(lines) <= README_LINES


@pytest.mark.parametrize("room", ["sandbox", "build", "api"])
def test_nothing_above_the_driver_knows_the_vmm(room: str) -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in (SOURCE / room).rglob("*")
        if path.suffix in (".py", ".md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search("qemu|qmp|chardev", line, re.IGNORECASE)
    ]
    assert not found


def test_no_module_is_named_for_nothing() -> None:
    assert not [relative(p) for p in MODULES if p.stem in BANNED_NAMES or p.parent.name in BANNED_NAMES]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    if len(text.splitlines()) > 10:
        assert ast.get_docstring(ast.parse(text)), f"{relative(path)} has no docstring"


def test_nothing_is_left_to_do_in_the_code() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [relative(p) for p in MODULES if marks.search(p.read_text())]
    assert not found


def tracked_texts() -> list[Path]:
    argv = ["git", "-C", str(HERE), "ls-files", "-z"]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [HERE / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def test_no_path_of_one_machine_is_in_a_file() -> None:
    paths = re.compile(r"/(work|root|home)/(?!user\b|<|\$|\{)[a-z]+/")
    found = []
    for path in tracked_texts():
        if not path.is_file() or path.suffix in (".csv", ".png") or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := paths.search(line):
                found.append(f"{relative(path)}:{number}: {match[0]}")
    assert not found

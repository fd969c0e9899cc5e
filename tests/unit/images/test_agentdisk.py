"""The agent disk: what is on it, what decides its bytes, and that nothing the agent imports was left out."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest

from casemate.errors import ImageBroken
from casemate.images import agentdisk

OURS = agentdisk.package_root()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    copy = tmp_path / "sources"
    for name in agentdisk.OURS:
        if (OURS / name).is_dir():
            shutil.copytree(OURS / name, copy / name)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copyfile(OURS / name, copy / name)
    shutil.copytree(OURS / "runtime", copy / "runtime")
    return copy


def imported(root: Path) -> set[str]:
    found: set[str] = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module)
    return {name.partition(".")[0] for name in found} - {"casemate"}


@pytest.mark.parametrize("part", ["guest", "wire"])
def test_what_the_agent_imports_was_not_left_out(part: str) -> None:
    names = imported(OURS / part)
    assert names, "there is an agent"
    assert names <= sys.stdlib_module_names
    assert not names & agentdisk.LEFT_OUT


def test_the_key_follows_every_file_of_ours_and_nothing_else(sources: Path, tmp_path: Path) -> None:
    base = tmp_path / "agent-base-1"
    keys = {agentdisk.key(base, sources)}
    (sources / "guest/added.txt").write_text("not code")
    (sources / "errors.py").touch()
    assert {agentdisk.key(base, sources)} == keys
    (sources / "runtime/more.py").write_text("x = 1\n")
    keys.add(agentdisk.key(base, sources))
    (sources / "wire/__init__.py").write_text("y = 2\n")
    keys.add(agentdisk.key(base, sources))
    keys.add(agentdisk.key(tmp_path / "agent-base-2", sources))
    assert len(keys) == 4


def test_an_installation_without_an_agent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageBroken, match="agent"):
        agentdisk.key(tmp_path / "base", tmp_path)


def test_the_newest_base_of_this_recipe_is_found(tmp_path: Path) -> None:
    assert agentdisk.find_base(tmp_path) is None
    (tmp_path / "agent-base-0123456789abcdef-0").mkdir()
    assert agentdisk.find_base(tmp_path) is None, "a base of another recipe"


def test_pid_1_is_the_agents_own_interpreter_alone() -> None:
    argv = agentdisk.AGENT_ARGV
    assert all(word.startswith(agentdisk.AGENT_MOUNT) for word in argv if word.startswith("/"))
    assert {"-I", "-S", "-B"} <= set(argv)
    assert argv[-2:] == ("-m", "casemate.guest")

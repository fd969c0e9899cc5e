"""Where each setting comes from, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casemate import config
from casemate.config import Origin
from casemate.errors import InvalidSpec


def explained(at: Path, env: dict[str, str] | None = None, **flags: object) -> dict[str, config.Found]:
    return {one.name: one for one in config.explain({"CASEMATE_HOME": str(at)} | (env or {}), **flags)}


def test_each_origin_overrides_the_one_before(tmp_path: Path) -> None:
    assert explained(tmp_path)["vcpus"] == config.Found("vcpus", 1, Origin.DEFAULT)
    (tmp_path / "config.toml").write_text("vcpus = 2")
    assert explained(tmp_path)["vcpus"] == config.Found("vcpus", 2, Origin.FILE, str(tmp_path / "config.toml"))
    env = {"CASEMATE_VCPUS": "3"}
    assert explained(tmp_path, env)["vcpus"] == config.Found("vcpus", 3, Origin.ENV, "CASEMATE_VCPUS")
    assert explained(tmp_path, env, vcpus=4)["vcpus"] == config.Found("vcpus", 4, Origin.FLAG)
    assert explained(tmp_path, env, vcpus=None)["vcpus"].origin is Origin.ENV


def test_what_is_explained_is_what_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("memory_mib = 300\nagent_timeout_s = 1.5")
    env = {"CASEMATE_HOME": str(tmp_path), "CASEMATE_DISK_MIB": "99"}
    loaded = config.load(env, tb_size_mib=8)
    found = {one.name: one.value for one in config.explain(env, tb_size_mib=8)}
    assert found == {name: getattr(loaded, name) for name in found}
    assert (loaded.memory_mib, loaded.agent_timeout_s, loaded.disk_mib, loaded.tb_size_mib) == (300, 1.5, 99, 8)
    assert loaded.home == tmp_path


def test_the_home_is_a_default_the_environments_or_a_flags(tmp_path: Path) -> None:
    assert config.explain({"HOME": "/h"})[0].origin is Origin.DEFAULT
    assert explained(tmp_path)["home"] == config.Found("home", tmp_path, Origin.ENV, "CASEMATE_HOME")
    assert explained(Path("/else"), home=tmp_path)["home"] == config.Found("home", tmp_path, Origin.FLAG)
    assert explained(tmp_path)["home"].to_json()["value"] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vcpu = 1", "unknown setting 'vcpu'"),
        ("vcpus = 'many'", "setting vcpus: 'many' is not a int"),
        ("vcpus", "config.toml"),
        ("home = '/x'", "home cannot be set in the home itself"),
        (b"\xff\xfe", "config.toml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str | bytes, said: str) -> None:
    (tmp_path / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidSpec, match=said):
        explained(tmp_path)


def test_a_list_of_tables_is_read_from_the_file_and_as_json(tmp_path):
    (tmp_path / "config.toml").write_text('[[pools]]\nimage = "python"\nmin_ready = 2\n')
    env = {"CASEMATE_HOME": str(tmp_path)}
    assert config.load(env).pools == ({"image": "python", "min_ready": 2},)
    assert config.load({**env, "CASEMATE_POOLS": '[{"image": "x"}]'}).pools == ({"image": "x"},)
    for wrong in ("x", "{}", "[1]"):
        with pytest.raises(InvalidSpec, match="pools"):
            config.load({**env, "CASEMATE_POOLS": wrong})


def test_a_pool_that_makes_no_sense_is_one_line_and_nothing_was_begun(tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = {**os.environ, "CASEMATE_HOME": str(home), "CASEMATE_POOLS": '[{"image": "python"}]'}
    ended = subprocess.run(
        [sys.executable, "-m", "casemate.daemon"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: setting pools: min_ready is missing\n"
    assert not home.exists()

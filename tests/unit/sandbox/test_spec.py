"""What a sandbox may be asked to be, its name and its record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidSpec, NotSupported
from casemate.sandbox.ids import ALPHABET, is_id, is_name, new_id
from casemate.sandbox.meta import Record, boot_id, read_meta, write_meta
from casemate.sandbox.spec import SandboxInfo, SandboxSpec, StateReason, Timings
from casemate.sandbox.states import State

INFO = SandboxInfo(
    id=new_id(),
    tenant="local",
    name="box",
    image="python@1",
    snapshot="s",
    state=State.RUNNING,
    isolation="emulated",
    accelerator="tcg",
    vcpus=1,
    memory_mib=512,
    disk_mib=1024,
    labels={"a": "b"},
    created_at=1.5,
    updated_at=2.5,
    idle_timeout_s=900,
    on_idle="kill",
    max_duration_s=None,
    network="none",
    attached=False,
    state_reason=StateReason("killed", "by its user"),
    timings=Timings(80.0, 120.0),
    pid=7,
)


def test_ids_hold_128_bits_and_no_dash() -> None:
    ids = {new_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(len(i) == 26 and set(i) <= set(ALPHABET) and is_id(i) and is_name(i) for i in ids)
    assert {i[0] for i in ids} == set("01234567")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "-x"},
        {"name": "x" * 64},
        {"name": "../x"},
        {"vcpus": 0},
        {"memory_mib": 1},
        {"disk_mib": 10**9},
        {"env": {"a=b": "c"}},
        {"env": {"A": "x\0y"}},
        {"env": {"A": "x" * 40_000}},
        {"user": "ro\0ot"},
        {"user": ""},
        {"user": "x" * 257},
        {"cwd": "/a\0b"},
        {"cwd": "/" + "x" * 4096},
        {"labels": {"casemate/owner": "me"}},
        {"labels": {"a b": "c"}},
        {"labels": {str(n): "" for n in range(65)}},
        {"max_duration_s": 0},
        {"create_timeout_s": float("nan")},
    ],
)
def test_a_wrong_wish_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        SandboxSpec(**wrong)


@pytest.mark.parametrize("wish", [{"network": "all"}, {"on_idle": "hibernate"}])
def test_what_is_not_built_yet_says_so(wish: dict[str, Any]) -> None:
    with pytest.raises(NotSupported):
        SandboxSpec(**wish)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_meta(tmp_path, INFO)
    assert read_meta(tmp_path) == Record(INFO, boot_id())
    write_meta(tmp_path, replace(INFO, state=State.TERMINATED))
    found = read_meta(tmp_path)
    assert found is not None
    assert found.sandbox.state is State.TERMINATED
    assert [p.name for p in tmp_path.iterdir()] == ["meta.json"]


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda t: ('{"format":1,"sandbox":' + t).encode()))
def test_a_torn_record_is_no_record(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "meta.json").write_bytes(body)
    assert read_meta(folder) is None

"""Every call we can make, against Firecracker's own description of each release it may go to.

The tables beside this file are made by ``tools/firecracker_api.py``. Firecracker refuses a field that it does not
know, which the description does not say; so here no type takes more than its fields.
"""

from __future__ import annotations

import json
import re
from inspect import isfunction
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.vmm.firecracker import calls
from casemate.vmm.firecracker.calls import Bucket, Call, Limiter
from casemate.vmm.firecracker.versions import PINNED, Version, parse_version

TABLES = {
    parse_version(table["version"]): table
    for table in (json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("firecracker_api_*.json")))
}
LIMITERS = (
    None,
    Limiter(),
    Limiter(bandwidth=Bucket(1 << 20, 100)),
    Limiter(ops=Bucket(1000, 1000, burst=5000)),
    Limiter(Bucket(1, 1, 1), Bucket(1, 1, 1)),
)


def by_function(version: Version) -> dict[str, list[Call]]:
    """What each function of ``calls`` makes."""
    save = [(kind, "/exchange/state", "/exchange/memory") for kind in get_args(calls.SnapshotKind)]
    load = [(tracked, resume) for tracked in (False, True) for resume in (False, True)]
    return {
        "version": [calls.version()],
        "instance": [calls.instance()],
        "machine_config": [calls.machine_config(1, 128), calls.machine_config(32, 4096, track_dirty_pages=True)],
        "boot_source": [
            calls.boot_source("/kernel", "/initrd", "console=ttyS0"),
            calls.boot_source("/kernel", None, ""),
        ],
        "drive": [
            *(calls.drive("drive0", "/drive0", True, limiter) for limiter in LIMITERS),
            calls.drive("root", "/drive0", False, is_root=True),
        ],
        "limit_drive": [calls.limit_drive("drive0", limiter) for limiter in LIMITERS if limiter is not None],
        "vsock": [calls.vsock("/exchange/vsock")],
        "entropy": [calls.entropy(limiter) for limiter in LIMITERS],
        "logger": [calls.logger("/exchange/log", level) for level in get_args(calls.Level)],
        "metrics": [calls.metrics("/exchange/metrics")],
        "start": [calls.start()],
        "flush_metrics": [calls.flush_metrics()],
        "set_state": [calls.set_state(state) for state in get_args(calls.State)],
        "save": [calls.save(*words) for words in save],
        "load": [calls.load("/state", "/memory", *words, version=version) for words in load],
    }


def possible(version: Version) -> list[Call]:
    return [call for made in by_function(version).values() for call in made]


def closed(schema: Any) -> Any:
    """*schema* whose objects have no fields but those it names."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {} if "properties" not in schema else {"additionalProperties": False}
    return shut | {key: closed(value) for key, value in schema.items()}


def check(table: dict[str, Any], schema: dict[str, Any], body: Any) -> None:
    whole = closed(schema) | {"definitions": closed(table["definitions"])}
    jsonschema.Draft4Validator(whole).validate(body)


def operation(table: dict[str, Any], call: Call) -> dict[str, Any]:
    """Of the one path that is meant: a name stands for one in braces."""
    found = [
        said[call.method]
        for path, said in table["paths"].items()
        if call.method in said and re.fullmatch(re.sub(r"\{\w+\}", "[A-Za-z0-9_]+", path), call.path)
    ]
    (one,) = found
    return dict(one)


def test_there_is_a_table_of_each_line_we_run() -> None:
    assert {(version.major, version.minor) for version in TABLES} >= {(1, 13), (1, 14), (1, 15)}
    assert PINNED in TABLES


@pytest.mark.parametrize("version", TABLES, ids=str)
def test_every_call_is_one_of_the_description(version: Version) -> None:
    table = TABLES[version]
    for call in possible(version):
        body = operation(table, call)["body"]
        assert (body is None) == (call.body is None), call
        if body is not None:
            check(table, body, call.body)


def test_no_function_is_forgotten() -> None:
    ours = {
        name for name, one in vars(calls).items() if isfunction(one) and one.__annotations__.get("return") == "Call"
    }
    assert ours == set(by_function(PINNED))
    for call in possible(PINNED):
        assert str(call) == f"{call.method} {call.path}"


@pytest.mark.parametrize("version", TABLES, ids=str)
def test_the_answers_that_we_read(version: Version) -> None:
    table = TABLES[version]
    definitions = table["definitions"]
    for call, read in ((calls.version(), "firecracker_version"), (calls.instance(), "state")):
        name = operation(table, call)["answers"]["200"]["$ref"].rpartition("/")[2]
        assert read in definitions[name]["required"]
        assert definitions[name]["properties"][read]["type"] == "string"
    assert definitions["InstanceInfo"]["properties"]["state"]["enum"] == ["Not started", "Running", "Paused"]
    for call in possible(version):
        answers = operation(table, call)["answers"]
        assert answers["default"] == {"$ref": "#/definitions/Error"}
        assert call.method == "GET" or answers["204"] is None  # nothing to decode
    assert definitions["Error"]["properties"]["fault_message"]["type"] == "string"


def test_each_release_is_given_the_name_it_knows() -> None:
    def body(version: str) -> dict[str, Any]:
        return dict(calls.load("/state", "/memory", True, version=parse_version(version)).body or {})

    assert body("1.12.1")["enable_diff_snapshots"] is True
    assert "track_dirty_pages" not in body("1.12.1")
    assert body("1.13.2")["track_dirty_pages"] is True
    assert "enable_diff_snapshots" not in body("1.15.1")


def test_the_tables_refuse_what_firecracker_refuses() -> None:
    """Else the tests above prove nothing."""
    table = TABLES[Version(1, 12, 1)]
    load = operation(table, calls.load("/s", "/m", True))["body"]
    for schema, body in (
        (load, calls.load("/s", "/m", True, version=PINNED).body),  # a name of later
        (load, {"mem_backend": {"backend_type": "File", "backend_path": "/m"}}),  # the state is missing
        (load, {"snapshot_path": "/s", "mem_backend": {"backend_type": "Tape", "backend_path": "/m"}}),
        ({"$ref": "#/definitions/MachineConfiguration"}, calls.machine_config(33, 128).body),
        ({"$ref": "#/definitions/MachineConfiguration"}, calls.machine_config(1, "128").body),  # type: ignore[arg-type]
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(table, schema, body)


@given(st.integers(1, 32), st.integers(1, 1 << 20), st.booleans())
def test_whatever_a_machine_has(vcpus: int, memory_mib: int, tracked: bool) -> None:
    call = calls.machine_config(vcpus, memory_mib, tracked)
    for table in TABLES.values():
        check(table, {"$ref": "#/definitions/MachineConfiguration"}, call.body)


def test_a_drive_is_not_written_unless_it_is_meant_to_be() -> None:
    for writable in (False, True):
        body = calls.drive("d", "/d", writable).body or {}
        assert body["is_read_only"] is not writable
        assert body["is_root_device"] is False

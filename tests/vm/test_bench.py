"""The benchmark measures real guests and its floor does the same by hand. Never how long it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate.bench import run_bench
from casemate.bench.rows import Crowds, Samples, percentile, row

ROWS = [
    "first_after_boot",
    "create_to_first_answer",
    "create_to_first_exec",
    "exec_roundtrip",
    "put_16mib",
    "get_16mib",
    "pool_claim_to_first_exec",
    "restore_to_first_exec",
    "run_code_1plus1",
    "line_to_callback",
    "plot_png",
    "new_context",
    "first_describe",
    "pool_claim_to_first_cell",
    "wake_to_first_exec",
    "suspend",
    "resume_to_first_exec",
    "suspend_16mib_more",
    "resume_to_first_exec_16mib_more",
    "fork_2",
    "snapshot",
    "burst_3",
    "private_memory_idle",
]
WITHOUT_FLOOR = (
    "line_to_callback",
    "plot_png",
    "new_context",
    "first_describe",
    "pool_claim_to_first_cell",
    "pool_claim_to_first_exec",
    "suspend",
    "suspend_16mib_more",
)


@pytest.mark.slow
@pytest.mark.vm
@pytest.mark.timeout(600)
def test_every_row_is_measured_beside_its_floor(daemon: Daemon, tmp_path: Path, no_trace: None) -> None:
    report = run_bench(2, tmp_path / "bench.json", crowds=Crowds(burst=3, copies=2, ready=1))
    assert json.loads((tmp_path / "bench.json").read_text()) == report
    assert [found["name"] for found in report["rows"]] == ROWS
    assert report["isolation"] in ("hardware", "emulated")
    for found in report["rows"]:
        assert found["failures"] == 0, found
        assert "floor_failures" not in found, found
        if "skipped" not in found and found["name"] != "private_memory_idle":
            assert found["ratio"] is None if found["name"] in WITHOUT_FLOOR else found["ratio"] > 0
            assert found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3


def test_failures_are_counted_and_named() -> None:
    found = row("x", Samples([2.0], ["guest-error: no"]), Samples([1.0]))
    assert (found["n"], found["failures"], found["ratio"], found["first_failure"]) == (1, 1, 2.0, "guest-error: no")

"""What the checks make of what the kernel says, and the report as a program prints it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.posture import kernel, programs, space
from casemate.posture.check import Status
from casemate.posture.report import Report, summary

STATUSES = {"pass", "warn", "fail", "skip"}


@pytest.mark.parametrize(
    ("mounts", "status", "word"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", Status.PASS, "v2"),
        ("c /sys/fs/cgroup/memory cgroup rw 0 0\nc /sys/fs/cgroup/unified cgroup2 rw 0 0", Status.WARN, "hybrid"),
        ("c /sys/fs/cgroup/memory cgroup rw 0 0", Status.WARN, "v1"),
        ("proc /proc proc rw 0 0", Status.WARN, "none"),
    ],
)
def test_cgroups(mounts: str, status: Status, word: str) -> None:
    check = kernel.check_cgroups(mounts)
    assert check.status is status
    assert word in check.found


@pytest.mark.parametrize(("mib", "status"), [(500, Status.FAIL), (1500, Status.WARN), (8000, Status.PASS)])
def test_memory(mib: int, status: Status) -> None:
    assert space.check_memory(f"MemTotal: 9000000 kB\nMemAvailable: {mib * 1024} kB").status is status


def test_the_verdict_says_what_machines_run_under() -> None:
    emulated = summary(Report("emulated", "tcg", "qemu 10.0.2", ()))
    assert emulated == "Sandboxes can run here: isolation emulated (qemu 10.0.2, tcg)."
    assert "isolation hardware (firecracker 1.15.1, kvm)" in summary(
        Report("hardware", "kvm", "firecracker 1.15.1", ())
    )


def test_swap() -> None:
    assert space.check_swap("SwapTotal:       0 kB").status is Status.PASS
    assert space.check_swap("SwapTotal: 2097152 kB").found == "2048 MiB"


def test_vulnerabilities_are_the_kernels_own_words(tmp_path: Path) -> None:
    (tmp_path / "meltdown").write_text("Not affected\n")
    assert kernel.check_cpu_vulnerabilities(tmp_path).status is Status.PASS
    (tmp_path / "mds").write_text("Vulnerable: Clear CPU buffers attempted, no microcode\n")
    check = kernel.check_cpu_vulnerabilities(tmp_path)
    assert check.status is Status.WARN
    assert check.found == "mds: Vulnerable: Clear CPU buffers attempted, no microcode"
    assert kernel.check_cpu_vulnerabilities(tmp_path / "none").status is Status.SKIP


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (None, Status.FAIL),
        ("7.2.17", Status.FAIL),
        ("8.1", Status.FAIL),
        ("8.2.0", Status.PASS),
        ("10.0.2", Status.PASS),
    ],
)
def test_qemu(version: str | None, status: Status) -> None:
    assert programs.check_qemu(version).status is status


def test_a_missing_program_names_its_package() -> None:
    check = programs.check_program(programs.Program("mkfs.none-such", "none-such-progs", "for this test"))
    assert check.status is Status.FAIL
    assert "none-such-progs" in check.hint
    assert check.fix == "casemate setup"


def test_missing_packages_are_those_of_failed_checks() -> None:
    checks = [programs.check_qemu("7.2"), programs.check_program(programs.PROGRAMS[0])]
    known = [program.package for program in programs.PROGRAMS]
    assert programs.missing_packages(checks)[0] == "qemu-system-x86"
    assert set(programs.missing_packages(checks)) <= {"qemu-system-x86", *known}


def test_disk_looks_at_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert str(tmp_path / "a" / "b") in space.check_disk(tmp_path / "a" / "b").found
    assert not (tmp_path / "a").exists()


def test_a_user_namespace_is_really_tried(no_trace: None) -> None:
    assert kernel.check_user_namespaces().status in (Status.PASS, Status.FAIL)


def examine(home: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "casemate.posture", *flags],
        env=os.environ | {"CASEMATE_HOME": str(home)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_json_has_the_promised_shape(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = examine(tmp_path, "--json")
    report = json.loads(done.stdout)
    assert set(report) == {"isolation", "accelerator", "vmm", "checks", "packages", "summary"}
    assert (report["isolation"], report["accelerator"]) in {("hardware", "kvm"), ("emulated", "tcg")}
    for check in report["checks"]:
        assert list(check) == ["name", "status", "found", "hint", "fix"]
        assert check["status"] in STATUSES
        assert check["status"] in ("pass", "skip") or check["hint"], check
    names = [check["name"] for check in report["checks"]]
    assert len(set(names)) == len(names)
    assert {"kvm", "qemu", "cgroups", "user-namespaces", "disk", "memory", "reflink", "swap", "ksm", "smt"} <= set(
        names
    )
    assert done.returncode == any(check["status"] == "fail" for check in report["checks"])
    assert (tmp_path / "run" / "host.json").is_file()


def test_text_has_no_colours_in_a_pipe(tmp_path: Path) -> None:
    done = examine(tmp_path)
    assert "\x1b" not in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith(("Sandboxes can run here", "No sandbox can run here"))


def test_a_wrong_setting_is_an_error_not_a_check(tmp_path: Path) -> None:
    done = examine(tmp_path, "--json", CASEMATE_VCPUS="many")
    assert done.returncode == 2
    assert json.loads(done.stderr)["code"] == "invalid-spec"

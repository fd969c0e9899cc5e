"""The probe's verdicts, its deadline, its memory, and its guest on a processor that does emulate correctly."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from casemate.posture import kvm, kvm_guest
from casemate.posture.check import Status
from casemate.posture.kvm import Verdict, check_kvm, find_verdict, judge, measure_kvm

GOOD_STEPS = [{"step": name, "ok": True, "said": "done"} for name in kvm.STEPS]


def test_usable_when_every_step_is_done_and_the_loop_is_fast() -> None:
    verdict = judge([{"native_ms": 4.0}, {"api": 12}, *GOOD_STEPS, {"guest_ms": 11.9}], True, 2.0)
    assert verdict == Verdict(True, "10^7 rounds: 4.0 ms natively, 11.9 ms in a KVM guest", 4.0, 11.9)
    assert check_kvm(verdict).status is Status.PASS


def test_a_loop_more_than_three_times_slower_is_emulation() -> None:
    verdict = judge([{"native_ms": 4.0}, *GOOD_STEPS, {"guest_ms": 12.1}], True, 2.0)
    assert not verdict.usable
    assert "4.0 ms" in verdict.found
    assert "12.1 ms" in verdict.found
    assert check_kvm(verdict).status is Status.WARN


@pytest.mark.parametrize("broken", kvm.STEPS)
def test_one_instruction_that_fails_is_enough(broken: str) -> None:
    steps = [s | {"ok": s["step"] != broken, "said": "no"} for s in GOOD_STEPS]
    verdict = judge([{"native_ms": 4.0}, *steps, {"guest_ms": 4.0}], True, 2.0)
    assert not verdict.usable
    assert broken in verdict.found


def test_killed_in_the_loop_tells_the_pace() -> None:
    facts = [{"native_ms": 4.0}, *GOOD_STEPS, {"rounds": 1_000_000, "ms": 1250.0}]
    verdict = judge(facts, False, 2.0)
    assert not verdict.usable
    assert "4.0 ms natively" in verdict.found
    assert "12500 ms" in verdict.found


@pytest.mark.parametrize("count", range(len(GOOD_STEPS)))
def test_stuck_in_a_step_names_it(count: int) -> None:
    verdict = judge([{"native_ms": 4.0}, {"api": 12}, *GOOD_STEPS[:count]], False, 2.0)
    assert not verdict.usable
    assert f"stuck before {kvm.STEPS[count]}" in verdict.found


def test_nothing_said_is_not_usable() -> None:
    assert not judge([], False, 2.0).usable
    assert not judge([], True, 2.0).usable


def test_a_device_that_is_not_kvm_is_refused() -> None:
    verdict = measure_kvm(Path("/dev/null"))
    assert not verdict.usable
    assert "KVM_GET_API_VERSION" in verdict.found
    assert verdict.native_ms is not None


def test_no_device(tmp_path: Path) -> None:
    assert measure_kvm(tmp_path / "kvm").found == f"no {tmp_path / 'kvm'}"


def test_this_machine_is_judged_in_time(no_trace: None) -> None:
    start = time.monotonic()
    verdict = measure_kvm()
    assert time.monotonic() - start < kvm.PROBE_LIMIT_S + 1.5
    if verdict.usable:
        assert verdict.native_ms is not None
        assert verdict.guest_ms is not None
        assert verdict.guest_ms <= 3 * verdict.native_ms


def test_the_verdict_is_kept_for_this_boot_kernel_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure() -> Verdict:
        measured.append(1)
        return Verdict(False, "as measured", 4.0, None)

    monkeypatch.setattr(kvm, "measure_kvm", measure)
    first = find_verdict(tmp_path)
    assert find_verdict(tmp_path) == first
    assert len(measured) == 1
    assert find_verdict(tmp_path, fresh=True) == first
    assert len(measured) == 2
    stored = json.loads((tmp_path / "host.json").read_text())
    assert stored["kvm"] == asdict(first)
    for key in ("boot_id", "kernel", "cpu"):
        other = stored | {"host": stored["host"] | {key: "another"}}
        (tmp_path / "host.json").write_text(json.dumps(other))
        before = len(measured)
        find_verdict(tmp_path)
        assert len(measured) == before + 1, key
    for junk in ("", "{", "[]", '{"format": 1}', json.dumps(stored | {"kvm": {"usable": True}})):
        (tmp_path / "host.json").write_text(junk)
        assert find_verdict(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["host.json"]


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "measure_kvm", lambda: Verdict(False, "as measured"))
    assert find_verdict(tmp_path / "not" / "there").found == "as measured"


def test_the_guest_needs_the_standard_library_only() -> None:
    argv = [sys.executable, "-I", "-S", kvm_guest.__file__, "/dev/null"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd="/", env={}, check=True)
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert facts[0]["native_ms"] > 0
    assert "refused" in facts[-1]


# A 32-bit multiboot program that copies the guest's memory image to 0x1000, enters 64-bit mode with its page
# tables and descriptor tables, calls each step (its hlt replaced by ret) with the registers the probe sets,
# writes rax to port 0xe9 as 8 bytes, and leaves through port 0xf4.
MULTIBOOT_STUB = bytes.fromhex(
    "eb22669002b0ad1b00000100fe4f51e40400100000001000000000000000000000001000fcbe40011000bf00100000b900f0"
    "0000f3a4b8001000000f22d8b8200604000f22e0b9800000c00f320d000100000f300f01152c011000b8330001800f22c0ea"
    "6a001000080066b810008ed08ed88ec00f011c253201100031c031d2bb01000000b902000000bf00800000bc00f00000be00"
    "600000ffd64989c7bd080000004488f8e6e949c1ef08ffcd75f3bf00800000b90004000031c0fcf3aa31c031d2bb01000000"
    "b902000000bf00800000bc00f00000be00610000ffd64989c7bd080000004488f8e6e949c1ef08ffcd75f331c031d2bb0100"
    "0000b902000000bf00800000bc00f00000be00620000ffd64989c7bd080000004488f8e6e949c1ef08ffcd75f3b000e6f4f4"
    "1700004000003f0000500000000000000f1f4000"
)


@pytest.mark.vm
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_the_steps_pass_on_a_processor_that_is_right(tmp_path: Path, no_trace: None) -> None:
    image = bytearray(kvm_guest.memory_image())
    for index, step in enumerate(kvm_guest.STEPS):
        end = kvm_guest.CODE + index * 256 + len(step.code) - 1
        assert image[end] == 0xF4
        image[end] = 0xC3
    (tmp_path / "guest").write_bytes(MULTIBOOT_STUB + bytes(image[0x1000:]))
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "64", "-display", "none", "-nodefaults"]
    argv += ["-no-reboot", "-kernel", str(tmp_path / "guest"), "-debugcon", f"file:{tmp_path / 'said'}"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4"]
    subprocess.run(argv, timeout=60, check=False, stdin=subprocess.DEVNULL)
    said = (tmp_path / "said").read_bytes()
    assert list(struct.unpack("<3Q", said)) == [step.rax for step in kvm_guest.STEPS]


def test_the_loop_is_the_same_code_in_and_outside() -> None:
    assert kvm_guest.LOOP.startswith(kvm_guest.COUNT_DOWN)
    assert kvm_guest.CHUNKS * kvm_guest.CHUNK_ROUNDS == kvm.ROUNDS
    assert len(kvm_guest.special_registers(os.urandom(312))) == 312

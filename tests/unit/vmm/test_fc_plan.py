"""A machine as Firecracker's arguments, files and calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate import errors
from casemate.host import Jail
from casemate.host.jailer import Jailer
from casemate.vmm import Drive, Kernel, MachineSpec, RateLimit
from casemate.vmm.firecracker import plan
from casemate.vmm.firecracker.versions import Version

DRIVES = (Drive(Path("/h/root")), Drive(Path("/h/agent")), Drive(Path("/h/disk"), writable=True))
SPEC = MachineSpec("guest-1", 2, 512, DRIVES)
KERNEL = Kernel(Path("/h/vmlinux"), Path("/h/initrd"), "console=ttyS0")
NOW = Version(1, 15, 1)


def paths_of(found: plan.Plan) -> dict[str, tuple[str, bool]]:
    """What is behind each descriptor, where it is in the jail, and whether it may be written."""
    what = {descriptor.number: descriptor.what for descriptor in found.descriptors}
    return {what[bind.descriptor]: (bind.path, bind.writable) for bind in found.jail.binds}


@pytest.mark.parametrize("privileged", [True, False])
def test_only_its_own_disk_memory_and_the_exchange_can_be_written(privileged: bool) -> None:
    booted = paths_of(plan.plan_boot(SPEC, KERNEL, privileged=privileged))
    assert {what for what, (_, writable) in booted.items() if writable} == {"memory", "drive 2", "exchange"}
    restored = paths_of(plan.plan_restore(SPEC, NOW, privileged=privileged))
    assert {what for what, (_, writable) in restored.items() if writable} == {"drive 2", "exchange"}


@pytest.mark.parametrize("privileged", [True, False])
def test_every_path_in_a_call_is_one_in_the_jail(privileged: bool) -> None:
    for found in (
        plan.plan_boot(SPEC, KERNEL, privileged=privileged),
        plan.plan_restore(SPEC, NOW, privileged=privileged),
    ):
        there = {path for path, _ in paths_of(found).values()}
        named = {value for call in found.calls for value in _texts(call.body) if value.startswith("/")}
        assert {path if path in there else str(Path(path).parent) for path in named} <= there


def test_where_we_are_root_the_jailer_stands_around_it() -> None:
    assert isinstance(plan.plan_restore(SPEC, NOW, privileged=True).jail, Jailer)
    own = plan.plan_restore(SPEC, NOW, privileged=False).jail
    assert isinstance(own, Jail)
    assert own.devices == ("/dev/kvm",)


def test_two_machines_of_one_snapshot_have_the_same_paths() -> None:
    """A state has the paths of the machine it was saved from in it."""
    other = MachineSpec("guest-2", 2, 512, tuple(Drive(Path("/other") / d.path.name, d.writable) for d in DRIVES))
    booted = plan.plan_boot(SPEC, KERNEL, privileged=True)
    for found in (plan.plan_boot(other, KERNEL, privileged=True), plan.plan_restore(other, NOW, privileged=True)):
        for what, (path, _) in paths_of(found).items():
            assert paths_of(booted).get(what, (path,))[0] == path


def test_the_guest_finds_its_drives_in_the_order_of_the_spec() -> None:
    made = [call.body for call in plan.plan_boot(SPEC, KERNEL, privileged=True).calls if "/drives/" in call.path]
    assert [(body["drive_id"], body["is_read_only"]) for body in made if body] == [
        ("drive0", True),
        ("drive1", True),
        ("drive2", False),
    ]


def test_nothing_takes_a_defence_away() -> None:
    for found in (plan.plan_boot(SPEC, KERNEL, privileged=True), plan.plan_restore(SPEC, NOW, privileged=True)):
        assert not {"--no-seccomp", "--seccomp-filter", "--enable-pci", "--no-api"} & set(found.command)
        assert not any("network" in call.path or "mmds" in call.path for call in found.calls)


def test_a_limited_drive_is_limited_in_a_clone_as_well() -> None:
    slow = Drive(Path("/h/disk"), writable=True, limit=RateLimit(bytes_per_s=1_000_000, operations_per_s=100))
    spec = MachineSpec("guest-1", 1, 512, (*DRIVES[:2], slow))
    wanted = {"bandwidth": {"size": 1_000_000, "refill_time": 1000}, "ops": {"size": 100, "refill_time": 1000}}
    for found in (plan.plan_boot(spec, KERNEL, privileged=True), plan.plan_restore(spec, NOW, privileged=True)):
        limited = {call.path: call.body["rate_limiter"] for call in found.calls if "rate_limiter" in (call.body or {})}
        assert limited["/drives/drive2"] == wanted
        assert limited.keys() <= {"/drives/drive2", "/entropy"}


def test_what_memory_cannot_be_saved_is_refused() -> None:
    with pytest.raises(errors.NotSupported, match="3072"):
        plan.plan_restore(MachineSpec("guest-1", 1, 4096, DRIVES), NOW, privileged=True)


def test_the_configuration_is_that_of_all_machines() -> None:
    found = plan.configuration()
    assert "/h/" not in found
    assert "guest-1" not in found
    assert "is_read_only" in found


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    return [value] if isinstance(value, str) else []

"""What fits, what does not, and that each reason says what and what to do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.fake_vmm import PLATFORM as PLATFORM_THEN
from tests.fakes.fake_vmm import FakeDriver
from tests.unit.sandbox.sandbox_world import TENANT, open_world

from casemate import errors
from casemate.sandbox import Here, Made, Misfit, SandboxSpec, check_fit, unfit
from casemate.sandbox.fitness import CLOCK_TOLERANCE_PPM
from casemate.vmm import Platform
from casemate.wire import GENERATION

ROOT, AGENT = Path("/a/root"), Path("/a/agent")
PLATFORM = Platform(
    "qemu", "QEMU 10.0.2", "a" * 64, "-M microvm,rtc=on -cpu max", "max on X", "tcg", "aes avx", 2_000_000
)
MADE = Made(PLATFORM, "6.12.1", GENERATION, ROOT, AGENT)
OTHER_BUILD = replace(PLATFORM, version="QEMU 11.0", vmm_sha256="b" * 64)


def misfits(made: Made, platform: Platform = PLATFORM, kept: Collection[str] = (), **more: str) -> list[Misfit]:
    return unfit(made, Here(platform, (ROOT, AGENT), kept, **more), "suspended-sandbox")  # type: ignore[arg-type]


def test_what_is_as_it_was_fits() -> None:
    assert misfits(MADE) == []
    check_fit(MADE, Here(PLATFORM, (ROOT, AGENT), kernel_release="6.12.1"), "image-snapshot", "it")


@pytest.mark.parametrize(
    ("platform", "what", "words"),
    [
        (OTHER_BUILD, "vmm", ["QEMU 10.0.2", "aaaaaaaaaaaa", "QEMU 11.0", "bbbbbbbbbbbb"]),
        (replace(PLATFORM, vmm="firecracker"), "vmm", ["QEMU 10.0.2"]),
        (replace(PLATFORM, accelerator="kvm"), "machine", ["under tcg", "under kvm"]),
        (replace(PLATFORM, machine="-M microvm,rtc=off -cpu max"), "machine", ["rtc=on is now", "rtc=off"]),
        (replace(PLATFORM, machine="-cpu max -M microvm,rtc=on"), "machine", ["another order"]),
        (replace(PLATFORM, cpu="max on Y"), "cpu", ["max on X", "max on Y"]),
        (replace(PLATFORM, cpu_features="aes sse"), "cpu", ["lacking here: avx", "new here: sse"]),
        (replace(PLATFORM, tsc_khz=2_001_000), "clock", ["2000000 kHz", "2001000 kHz"]),
        (replace(PLATFORM, tsc_khz=0), "clock", ["at 0 kHz"]),
    ],
)
def test_another_platform_does_not(platform: Platform, what: str, words: list[str]) -> None:
    found = misfits(MADE, platform)
    assert what in [one.what for one in found]
    for word in words:
        assert any(word in one.sentence for one in found), word
    assert all("casemate resume --cold" in one.remedy for one in found)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (replace(MADE, generation=GENERATION + 1), "agent"),
        (replace(MADE, generation=GENERATION - 2), "agent"),
        (replace(MADE, generation=0), "agent"),
        (replace(MADE, root=Path("/a/other")), "disk"),
        (replace(MADE, agent=Path("/a/other")), "disk"),
    ],
)
def test_another_agent_or_disk_does_not(made: Made, what: str) -> None:
    assert [one.what for one in misfits(made)] == [what]


def test_another_kernel_matters_to_an_image_only() -> None:
    assert [one.what for one in misfits(MADE, kernel_release="6.13")] == ["kernel"]
    assert misfits(MADE) == []


def test_every_reason_is_told_at_once() -> None:
    worst = replace(OTHER_BUILD, accelerator="kvm", machine="m", cpu="c", tsc_khz=1)
    assert {one.what for one in misfits(MADE, worst)} == {"vmm", "machine", "cpu", "clock"}
    with pytest.raises(errors.Unfit, match=r"^it cannot be restored here: .*; ") as raised:
        check_fit(MADE, Here(worst, ()), "suspended-sandbox", "it")
    assert len(raised.value.evidence["misfits"]) == 7
    assert raised.value.hint.count("casemate resume --cold") >= 1


def test_a_kept_build_is_no_help_to_another_vmm() -> None:
    made = replace(MADE, platform=replace(PLATFORM, vmm="firecracker", version="Firecracker 1.15.1"))
    here = Here(PLATFORM, (MADE.root, MADE.agent), kept_vmms=(PLATFORM.vmm_sha256,))
    (found,) = unfit(made, here, "suspended-sandbox")
    assert found.what == "vmm"
    assert found.sentence == "it was made by Firecracker 1.15.1, machines run under QEMU 10.0.2 here"
    assert "casemate doctor" in found.remedy


def test_an_image_snapshot_asks_nobody_for_anything() -> None:
    found = unfit(MADE, Here(OTHER_BUILD, ()), "image-snapshot")
    assert {one.remedy for one in found} == {"it is built again by itself"}


def test_a_kept_build_brings_its_own_emulated_cpu_along() -> None:
    upgraded = replace(OTHER_BUILD, cpu_features="aes avx avx512f")
    assert misfits(MADE, upgraded) != []
    assert misfits(MADE, upgraded, kept=["a" * 64]) == []
    assert misfits(MADE, upgraded, kept=["c" * 64]) != []


def test_under_kvm_the_features_are_the_processors_whatever_build_is_kept() -> None:
    made = replace(MADE, platform=replace(PLATFORM, accelerator="kvm"))
    here = replace(OTHER_BUILD, accelerator="kvm", cpu_features="aes")
    assert [one.what for one in misfits(made, here, kept=["a" * 64])] == ["cpu"]


def test_two_measurements_of_one_clock_are_one_clock() -> None:
    near = PLATFORM.tsc_khz * CLOCK_TOLERANCE_PPM // 1_000_000
    assert misfits(MADE, replace(PLATFORM, tsc_khz=PLATFORM.tsc_khz + near)) == []
    assert misfits(MADE, replace(PLATFORM, tsc_khz=PLATFORM.tsc_khz + 2 * near)) != []


def test_it_survives_its_own_words() -> None:
    assert Made.from_json(MADE.to_json() | {"more": 1}) == MADE
    for missing in MADE.to_json():
        with pytest.raises((KeyError, TypeError, ValueError)):
            Made.from_json({key: value for key, value in MADE.to_json().items() if key != missing})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_restore_asks_first(tmp_path: Path, no_trace: None) -> None:
    """Whoever handed the snapshot out: no VMM is started for one that does not fit."""
    driver = Upgraded()
    async with open_world(tmp_path, driver=driver) as world:
        with pytest.raises(errors.Unfit, match=r"snapshot s cannot be restored here: .*installed is 2"):
            await world.sandboxes.create(TENANT, SandboxSpec("python"))
        assert driver.restores == 0
        driver.now = PLATFORM_THEN
        world.known.append((await world.sandboxes.create(TENANT, SandboxSpec("python"))).info.id)
        assert driver.restores == 1
        await world.settle()


class Upgraded(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.now = replace(PLATFORM_THEN, version="2", vmm_sha256="1" * 64)

    async def platform(self) -> Platform:
        return self.now

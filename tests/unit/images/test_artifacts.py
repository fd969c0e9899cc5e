"""The workshop without a network: what is known is found again, what is left over is swept, turns are taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.errors import HostError, NotFound, ToolFailed
from casemate.images import RECIPES, Recipe, Workshop
from casemate.images.locks import held


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "home")


class Bootstrapper:
    """Stands where mmdebstrap does: writes a disk, and remembers what was asked of it."""

    def __init__(self, content: bytes = b"a disk") -> None:
        self.content = content
        self.asked: list[str] = []

    def __call__(self, recipe: Recipe, out: Path, on_line: Callable[[str], None]) -> None:
        self.asked.append(recipe.name)
        assert not out.exists(), "the bootstrapper makes the file"
        out.write_bytes(self.content)


def test_a_root_disk_is_made_once_and_again_by_force(workshop: Workshop, tmp_path: Path) -> None:
    bootstrap = Bootstrapper()
    first = workshop.root("tiny", bootstrap=bootstrap)
    assert first.read_bytes() == b"a disk"
    assert Workshop(tmp_path / "home").root("tiny", bootstrap=bootstrap) == first
    assert bootstrap.asked == ["tiny"]
    bootstrap.content = b"a newer disk"
    second = workshop.root("tiny", bootstrap=bootstrap, force=True)
    assert second != first
    assert first.exists(), "machines may still run from the old one"
    assert workshop.root("tiny", bootstrap=bootstrap) == second


def test_a_root_disk_that_vanished_is_made_again(workshop: Workshop) -> None:
    bootstrap = Bootstrapper()
    workshop.store.remove(workshop.root("tiny", bootstrap=bootstrap).name)
    assert workshop.root("tiny", bootstrap=bootstrap).exists()
    assert bootstrap.asked == ["tiny", "tiny"]


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b'{"key": 1}', b"\xff\xfe"])
def test_a_spoilt_index_only_costs_a_build(workshop: Workshop, spoilt: bytes) -> None:
    bootstrap = Bootstrapper()
    disk = workshop.root("tiny", bootstrap=bootstrap)
    (workshop.store.root / ".index/root-tiny.json").write_bytes(spoilt)
    assert workshop.root("tiny", bootstrap=bootstrap) == disk


def test_an_unknown_image_names_those_there_are(workshop: Workshop) -> None:
    with pytest.raises(NotFound) as caught:
        workshop.prepare("windows")
    assert all(name in caught.value.hint for name in RECIPES)


def test_a_build_that_fails_leaves_nothing(workshop: Workshop) -> None:
    def fail(recipe: Recipe, out: Path, on_line: Callable[[str], None]) -> None:
        out.write_bytes(b"half a disk")
        raise ToolFailed("mmdebstrap failed")

    with pytest.raises(ToolFailed):
        workshop.root("tiny", bootstrap=fail)
    assert workshop.store.digests() == []
    assert list(workshop.cache.glob(".new-*")) == []


def test_what_a_dead_builder_left_is_swept_of_that_part_only(workshop: Workshop) -> None:
    for part in ("root-tiny", "kernel"):
        (workshop.cache / f".new-{part}-dead").mkdir()
        (workshop.cache / f".new-{part}-dead/disk").write_bytes(b"half")
    workshop.root("tiny", bootstrap=Bootstrapper())
    assert [p.name for p in workshop.cache.glob(".new-*")] == [".new-kernel-dead"]


def test_two_builders_take_turns_and_the_second_finds_the_work_done(workshop: Workshop) -> None:
    begun, go_on, told = threading.Event(), threading.Event(), []

    def slow(recipe: Recipe, out: Path, on_line: Callable[[str], None]) -> None:
        begun.set()
        assert go_on.wait(10)
        out.write_bytes(b"a disk")

    def second_progress(step: str, message: str, fraction: float | None) -> None:
        told.append(step)
        go_on.set()

    never = Bootstrapper()
    first = threading.Thread(target=workshop.root, args=("tiny",), kwargs={"bootstrap": slow})
    first.start()
    assert begun.wait(10)
    workshop.root("tiny", bootstrap=never, progress=second_progress)
    first.join(10)
    assert told == ["wait"]
    assert never.asked == []


def test_a_lock_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        held(tmp_path / "lock", timeout_s=1),
        pytest.raises(HostError, match="lock"),
        held(tmp_path / "lock", timeout_s=0.05),
    ):
        pass
    with held(tmp_path / "lock", timeout_s=1, shared=True), held(tmp_path / "lock", timeout_s=1, shared=True):
        pass

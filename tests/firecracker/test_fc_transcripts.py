"""The transcripts are what the real binary says, and the counterpart plays no more and no less than they have."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import cast

import pytest
from tests.firecracker.bare import Bare
from tests.firecracker.counterpart import Absent, load, run_counterpart
from tests.firecracker.transcripts import ALL, FOLDER, Recorder, record, written

from casemate.vmm.firecracker.builds import Build

pytestmark = pytest.mark.usefixtures("no_trace")


@pytest.mark.parametrize("name", ALL)
def test_the_real_one_does_it_again(name: str, firecracker: Build, guests: Path, tmp_path: Path) -> None:
    assert record(name, firecracker, guests, tmp_path)["events"] == load(name)


class Played(Recorder):
    """A scenario's host, where a counterpart is the VMM."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder, folder)
        self.acted = threading.Semaphore(0)

    def act(self, what: str) -> None:
        super().act(what)
        self.acted.release()

    def start(self, name: str = "one") -> Bare:
        return cast(Bare, Absent(self.folder))


@pytest.mark.parametrize("name", ALL)
def test_the_counterpart_does_it_too(name: str, tmp_path: Path) -> None:
    with Played(tmp_path) as recorder, run_counterpart(load(name), tmp_path, recorder.acted):
        ALL[name](recorder)
    assert recorder.events == load(name)


def test_the_counterpart_minds_what_it_hears(tmp_path: Path) -> None:
    def hear_another_line() -> None:
        with Played(tmp_path) as recorder, run_counterpart(load("heard_and_answered"), tmp_path):
            recorder.hear(recorder.connect(recorder.start(), b"CONNECT 1023\n"))

    with pytest.raises(AssertionError, match="not in the transcript"):
        hear_another_line()


def test_there_is_a_scenario_to_each_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ALL)
    for path in FOLDER.glob("*.json"):
        assert written(json.loads(path.read_text())) == path.read_text()

"""What setup asks apt to do, and what it says when apt cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.cli import apt
from casemate.errors import HostError, HostFull, ToolFailed

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm-backports
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    return tmp_path


@pytest.fixture
def bare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian 12 machine on which apt has not been asked anything yet."""
    monkeypatch.setattr(apt, "APT_FOLDER", folder)
    monkeypatch.setattr(apt, "distribution", lambda: ("debian", "bookworm"))
    monkeypatch.setattr(apt, "candidate_version", lambda package: None)
    monkeypatch.setattr(apt.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(apt, "find_archive", lambda suite, of=apt.find_archive: of(suite, folder))
    return folder


def test_archives_are_found_in_both_formats(folder: Path) -> None:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert apt.find_archive("bookworm", folder) == apt.Archive("http://mirror.example/debian", keyring)
    assert apt.find_archive("bookworm-backports", folder) is None, "that source is switched off"
    assert apt.find_archive("trixie", folder) is None, "that is for sources"
    line = "deb [arch=amd64 signed-by=/k.gpg] http://list.example/debian bookworm-backports main\n"
    (folder / "sources.list").write_text("# deb http://no.example/debian bookworm-backports main\n" + line)
    assert apt.find_archive("bookworm-backports", folder) == apt.Archive("http://list.example/debian", "/k.gpg")


def test_a_bare_debian_12_gets_qemu_from_backports_of_its_own_mirror(bare: Path) -> None:
    add, update, qemu, rest = apt.plan(["qemu-system-x86", "bubblewrap", "mmdebstrap"])
    assert "URIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n" in add.stdin
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n" in add.stdin
    assert add.argv[-1] == str(bare / "sources.list.d/casemate-backports.sources")
    assert update.argv == ("apt-get", "update")
    assert qemu.argv[-3:] == ("-t", "bookworm-backports", "qemu-system-x86")
    assert rest.argv[-2:] == ("bubblewrap", "mmdebstrap")
    assert all("--no-install-recommends" in step.argv and "-y" in step.argv for step in (qemu, rest))


def test_backports_that_are_there_are_not_added_again(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "sources.list").write_text("deb http://mirror.example/debian bookworm-backports main\n")
    monkeypatch.setattr(apt, "candidate_version", lambda package: (7, 2))
    update, qemu = apt.plan(["qemu-system-x86"])
    assert update.argv == ("apt-get", "update")
    assert "-t" in qemu.argv


def test_a_newer_release_needs_no_backports(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "distribution", lambda: ("ubuntu", "noble"))
    monkeypatch.setattr(apt, "candidate_version", lambda package: (8, 2))
    _, everything = apt.plan(["qemu-system-x86", "bubblewrap"])
    assert everything.argv[-2:] == ("qemu-system-x86", "bubblewrap")
    assert "-t" not in everything.argv


def test_a_release_that_is_too_old_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "distribution", lambda: ("ubuntu", "jammy"))
    monkeypatch.setattr(apt, "candidate_version", lambda package: (6, 2))
    with pytest.raises(HostError, match=r"6\.2"):
        apt.plan(["qemu-system-x86"])


def test_nothing_missing_is_nothing_to_do(bare: Path) -> None:
    assert apt.plan([]) == []


def test_without_apt_the_packages_are_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.shutil, "which", lambda name: None)
    with pytest.raises(HostError, match="bubblewrap, erofs-utils"):
        apt.plan(["bubblewrap", "erofs-utils"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "dlstatus:3:42.5:Retrieving file 3 of 9 (2min remaining)\n",
            ("Retrieving file 3 of 9 (2min remaining)", 0.425),
        ),
        ("pmstatus:qemu-system-x86:60:Unpacking qemu-system-x86 (amd64)\n", ("Unpacking qemu-system-x86 (amd64)", 0.6)),
        ("pmstatus:libslirp0:amd64:71.4:Configuring libslirp0:amd64\n", ("Configuring libslirp0:amd64", 0.714)),
        ("pmerror:/tmp/x.deb:10:sub-process failed\n", None),
        ("Get:1 http://mirror.example bookworm InRelease\n", None),
        ("dlstatus\n", None),
    ],
)
def test_progress_lines(line: str, expected: tuple[str, float] | None) -> None:
    assert apt.parse_status(line) == (expected and (expected[0], pytest.approx(expected[1])))


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        ("Err:1 http://m bookworm InRelease\n  Temporary failure resolving 'm'", HostError, "cannot be reached"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", HostFull, "disk"),
        ("sudo: a password is required", HostError, "permission"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend.", HostError, "another program"),
        ("E: Unable to locate package qemu-system-x86", ToolFailed, "Unable to locate package"),
    ],
)
def test_failures_are_one_sentence_and_a_remedy(said: str, kind: type[HostError], word: str) -> None:
    error = apt.explain(apt.Step("install x", ("apt-get", "install", "x")), 100, said.splitlines())
    assert type(error) is kind
    assert word in error.message
    assert "\n" not in error.message
    assert error.hint


def test_a_step_really_runs_and_reports() -> None:
    said: list[tuple[str, float | None]] = []
    script = "cat; echo dlstatus:1:50:half; echo E: no such thing; exit 3"
    step = apt.Step("try", ("sh", "-c", script), stdin="hello\n")
    if apt.os.geteuid() != 0:
        pytest.skip("needs root, or sudo that asks nothing")
    with pytest.raises(ToolFailed, match="could not try: no such thing") as caught:
        apt.run(step, lambda message, fraction: said.append((message, fraction)))
    assert said == [("half", 0.5)]
    assert caught.value.evidence["last_lines"] == ["hello", "E: no such thing"]

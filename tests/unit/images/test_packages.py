"""Packages through the real apt, from an archive of our own in a folder: signed, unsigned and tampered with."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, HostError, ToolFailed
from casemate.images.packages import Apt, Package, extract, parse_uris

GOOD_LINE = f"'file:/a/hello_1%3a2_amd64.deb' hello_1%3a2_amd64.deb 1234 SHA256:{'ab' * 32}"


def test_a_line_of_apt_is_a_package() -> None:
    text = f"Some notice\n{GOOD_LINE}\n"
    assert parse_uris(text) == [Package("hello", "1:2", 1234, "ab" * 32)]


@pytest.mark.parametrize("weak", ["MD5Sum:" + "a" * 32, "", "SHA256:" + "g" * 64])
def test_a_package_without_a_strong_digest_is_refused(weak: str) -> None:
    with pytest.raises(ToolFailed, match="SHA-256"):
        parse_uris(f"'file:/a_1_amd64.deb' a_1_amd64.deb 12 {weak}\n")


@given(st.text(max_size=200))
def test_any_text_is_packages_or_refused(text: str) -> None:
    with contextlib.suppress(ToolFailed):
        parse_uris("'" + text)


class Archive:
    """A Debian archive with one package, as small as apt accepts it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool = root / "archive/hello_1.0_all.deb"
        self.release = root / "archive/dists/trial"
        self.gnupg = root / "gnupg"
        self.gnupg.mkdir(parents=True, mode=0o700)
        (self.release / "main/binary-amd64").mkdir(parents=True)
        self._package()
        self._gpg("--quick-gen-key", "trial@example.invalid", "ed25519", "sign", "never")
        (root / "key.gpg").write_bytes(self._gpg("--export"))
        self.index()
        self.sign()

    def _gpg(self, *words: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.gnupg), "--batch", "--passphrase", "", "--yes", *words]
        return subprocess.run(argv, check=True, capture_output=True).stdout

    def _package(self) -> None:
        tree = self.root / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share").mkdir(parents=True)
        (tree / "usr/share/hello").write_text("hello\n")
        (tree / "DEBIAN/control").write_text(
            "Package: hello\nVersion: 1.0\nArchitecture: all\nDepends: other | else, third:any (>= 2)\n"
            "Maintainer: Nobody <n@example.invalid>\nDescription: trial\n"
        )
        # a script that would be noticed, were it run
        script = tree / "DEBIAN/preinst"
        script.write_text(f"#!/bin/sh\ntouch {self.root}/ran\n")
        script.chmod(0o755)
        argv = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(self.pool)]
        subprocess.run(argv, check=True, capture_output=True)
        self.control = (tree / "DEBIAN/control").read_text()

    def index(self) -> None:
        deb = self.pool.read_bytes()
        packages = (
            f"{self.control}Filename: {self.pool.name}\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n"
        )
        (self.release / "main/binary-amd64/Packages").write_text(packages)
        (self.release / "main/binary-amd64/Packages.gz").write_bytes(gzip.compress(packages.encode()))

    def sign(self) -> None:
        lines = ""
        for path in sorted((self.release / "main").rglob("Packages*")):
            data = path.read_bytes()
            name = path.relative_to(self.release)
            lines += f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
        release = (
            "Origin: trial\nSuite: trial\nCodename: trial\nArchitectures: amd64\nComponents: main\n"
            f"Date: {formatdate(usegmt=True)}\nSHA256:\n{lines}"
        )
        (self.release / "Release").write_text(release)
        (self.release / "InRelease").unlink(missing_ok=True)
        self._gpg("--clearsign", "-o", str(self.release / "InRelease"), str(self.release / "Release"))

    def apt(self, cache: Path) -> Apt:
        sources = self.root / "sources.list"
        sources.write_text(f"deb [signed-by={self.root}/key.gpg] file:{self.root}/archive trial main\n")
        (self.root / "empty").touch()
        options = (
            f"Dir::Etc::SourceList={sources}",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::status={self.root}/empty",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "Acquire::Languages=none",
        )
        return Apt(cache, options)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    if not all(shutil.which(tool) for tool in ("gpg", "gpgv", "apt-get", "dpkg-deb")):
        pytest.skip("needs apt, dpkg and gpg")
    made = Archive(tmp_path / "a")
    yield made
    argv = ["gpgconf", "--homedir", str(made.gnupg), "--kill", "all"]
    subprocess.run(argv, check=False, capture_output=True)


def test_a_signed_package_is_fetched_once_and_unpacked(archive: Archive, tmp_path: Path) -> None:
    apt = archive.apt(tmp_path / "cache")
    apt.refresh()
    assert apt.versions("hello") == ["1.0"]
    assert apt.depends("hello", "1.0") == ["other", "third"]
    packages = apt.resolve(["hello"])
    assert [(p.name, p.version) for p in packages] == [("hello", "1.0")]
    files = apt.fetch(packages)
    archive.pool.unlink()  # from here on only the cache has it
    assert apt.fetch(packages) == files
    extract(files, tmp_path / "out")
    assert (tmp_path / "out/usr/share/hello").read_text() == "hello\n"
    assert not (archive.root / "ran").exists(), "a maintainer script ran"


def test_a_package_spoilt_in_the_cache_is_fetched_again(archive: Archive, tmp_path: Path) -> None:
    apt = archive.apt(tmp_path / "cache")
    apt.refresh()
    packages = apt.resolve(["hello"])
    [file] = apt.fetch(packages)
    good = file.read_bytes()
    file.write_bytes(good + b"spoilt")
    assert apt.fetch(packages) == [file]
    assert file.read_bytes() == good


def test_a_package_that_is_not_the_signed_one_is_refused(archive: Archive, tmp_path: Path) -> None:
    apt = archive.apt(tmp_path / "cache")
    apt.refresh()
    packages = apt.resolve(["hello"])
    data = bytearray(archive.pool.read_bytes())
    data[-1] ^= 1  # same size, another content
    archive.pool.write_bytes(data)
    with pytest.raises(CasemateError):
        apt.fetch(packages)
    assert list((tmp_path / "cache/packages").iterdir()) == []


def test_an_index_that_is_not_the_signed_one_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.control = archive.control.replace("1.0", "6.6")
    archive.index()
    with pytest.raises(CasemateError):
        archive.apt(tmp_path / "cache").refresh()


def test_an_archive_without_a_signature_is_refused(archive: Archive, tmp_path: Path) -> None:
    (archive.release / "InRelease").unlink()
    apt = archive.apt(tmp_path / "cache")
    with pytest.raises(CasemateError):
        apt.refresh()
    with pytest.raises(CasemateError):
        apt.resolve(["hello"])


def test_fresh_lists_are_not_renewed_but_on_demand(archive: Archive, tmp_path: Path) -> None:
    apt, told = archive.apt(tmp_path / "cache"), []
    for force in (False, False, True):
        apt.refresh(lambda step, message, fraction: told.append(message), force=force)
    assert told == ["package lists"] * 2


def test_an_unknown_package_says_what_to_look_at(archive: Archive, tmp_path: Path) -> None:
    apt = archive.apt(tmp_path / "cache")
    apt.refresh()
    assert apt.versions("nothing-like-it") == []
    with pytest.raises(CasemateError) as caught:
        apt.resolve(["nothing-like-it"])
    assert caught.value.hint


def test_an_archive_out_of_reach_is_the_hosts_business(tmp_path: Path) -> None:
    sources = tmp_path / "sources.list"
    sources.write_text("deb [trusted=yes] http://127.0.0.1:9/debian trial main\n")
    options = (f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null", "Acquire::Retries=0")
    with pytest.raises(HostError, match="out of reach") as caught:
        Apt(tmp_path / "cache", options).refresh()
    assert "proxy" in caught.value.hint

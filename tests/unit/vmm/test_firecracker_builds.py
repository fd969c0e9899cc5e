"""How a release gets in: whole or not at all, only with programs that run here, and of a good version."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.vmm.installed import make_pair, make_program, needs_tools

from casemate.errors import CasemateError, HostError, HostFull, InvalidSpec, NotSupported, ToolFailed, ToolMissing
from casemate.vmm.firecracker import builds, release
from casemate.vmm.firecracker.builds import Build, find_build, find_kept_build
from casemate.vmm.firecracker.release import RELEASE, Release
from casemate.vmm.firecracker.versions import PINNED, Version
from casemate.vmm.kept import installed_builds, kept_builds


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    return partial(make_program, tmp_path_factory.mktemp("programs"))


@pytest.fixture
def pair(made: Callable[..., bytes]) -> Callable[[str], dict[str, bytes]]:
    return partial(make_pair, made)


@pytest.fixture
def vmm(tmp_path: Path) -> Path:
    return tmp_path / "home" / "vmm"


@pytest.fixture
def roots() -> Iterator[Path]:
    """A folder that everybody may look into; pytest's own are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def folder_of(path: Path, files: Mapping[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def tgz_of(path: Path, files: Mapping[str, bytes], version: str = "1.15.1", **members: bytes) -> Path:
    """As a release is packed: with symbols, a description and a licence."""
    inside = f"release-v{version}-x86_64"
    named = {f"{inside}/{name}-v{version}-x86_64": data for name, data in files.items()}
    more = {f"{inside}/firecracker-v{version}-x86_64.debug": b"\x7fELF" + b"s" * 99_999, f"{inside}/LICENSE": b"x"}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {f"{inside}/SHA256SUMS": b"y", **more, **named, **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def wheel_of(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/__init__.py", "")
        for name, data in files.items():
            archive.writestr(f"package/bin/{name}", data)
    return path


KINDS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": folder_of,
    "release": tgz_of,
    "wheel": wheel_of,
}


def install(vmm: Path, source: Path | None, *, known_bad_allowed: bool = False, fetched: Release = RELEASE) -> Build:
    return builds.install(vmm, source, lambda line: None, known_bad_allowed=known_bad_allowed, fetched=fetched)


def everything(vmm: Path) -> list[str]:
    return sorted(str(path.relative_to(vmm)) for path in vmm.rglob("*")) if vmm.exists() else []


@needs_tools
@pytest.mark.parametrize("kind", KINDS)
def test_installed_from_what_one_has(
    kind: str, vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], no_trace: None
) -> None:
    files = pair("1.15.1")
    said: list[str] = []
    build = builds.install(vmm, KINDS[kind](tmp_path / "source", files), said.append)
    sha256 = hashlib.sha256(files["firecracker"]).hexdigest()
    assert build == Build(vmm / sha256, PINNED, sha256, hashlib.sha256(files["jailer"]).hexdigest())
    assert find_build(vmm) == find_kept_build(vmm, sha256) == build
    assert (build.firecracker.read_bytes(), build.jailer.read_bytes()) == (files["firecracker"], files["jailer"])
    assert {oct(path.stat().st_mode & 0o7777) for path in (build.firecracker, build.jailer)} == {"0o555"}
    assert everything(vmm) == sorted(
        [sha256, *(f"{sha256}/{name}" for name in ("firecracker", "jailer", "build.json")), "firecracker.json"]
    )
    assert said[-1] == f"Firecracker 1.15.1, build {sha256[:12]}"
    assert (kept_builds(vmm), installed_builds(vmm)) == ([sha256], {sha256})


@needs_tools
def test_the_one_before_is_kept(vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]]) -> None:
    old = install(vmm, folder_of(tmp_path / "old", pair("1.14.4")))
    new = install(vmm, folder_of(tmp_path / "new", pair("1.15.1")))
    assert find_build(vmm) == new
    assert find_kept_build(vmm, old.sha256) == old
    assert (set(kept_builds(vmm)), installed_builds(vmm)) == ({old.sha256, new.sha256}, {new.sha256})
    assert install(vmm, tmp_path / "old") == old  # and back
    assert find_build(vmm) == old


@needs_tools
def test_what_was_changed_is_not_used_and_an_install_mends_it(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]]
) -> None:
    source = folder_of(tmp_path / "source", pair("1.15.1"))
    build = install(vmm, source)
    for harm in (
        lambda: (build.jailer.chmod(0o755), build.jailer.write_bytes(b"changed")),
        build.firecracker.unlink,
        (build.folder / "build.json").unlink,
        lambda: ((build.folder / "build.json").chmod(0o644), (build.folder / "build.json").write_text("[]")),
    ):
        harm()
        with pytest.raises(ToolMissing, match=r"is not what was installed|is not kept"):
            find_build(vmm)
        assert install(vmm, source) == build
        assert find_build(vmm) == build
    assert len(kept_builds(vmm)) == 1
    assert not list(vmm.glob(".*"))


def test_nothing_is_installed(vmm: Path) -> None:
    for _ in range(2):
        with pytest.raises(ToolMissing, match="Firecracker is not installed") as missing:
            find_build(vmm)
        assert missing.value.hint == "casemate vmm install firecracker"
        vmm.mkdir(parents=True, exist_ok=True)
        (vmm / "firecracker.json").write_text("not json")
    for digest in ("0" * 64, "../../etc", ""):
        with pytest.raises(ToolMissing, match="not kept"):
            find_kept_build(vmm, digest)
    assert (kept_builds(vmm), installed_builds(vmm)) == ([], set())
    assert kept_builds(vmm / "none") == []


@needs_tools
def test_a_bad_release_only_if_it_is_wanted(vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]]) -> None:
    source = folder_of(tmp_path / "source", pair("1.12.1"))
    with pytest.raises(ToolMissing, match="CVE-2026-1386"):
        install(vmm, source)
    assert everything(vmm) == []
    assert install(vmm, source, known_bad_allowed=True).version == Version(1, 12, 1)


@needs_tools
def test_what_is_not_firecracker(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], made: Callable[..., bytes]
) -> None:
    good = pair("1.15.1")
    build = install(vmm, folder_of(tmp_path / "good", good))
    before = everything(vmm)
    wrong: dict[str, tuple[Mapping[str, bytes], type[CasemateError], str]] = {
        "swapped": (
            {"firecracker": good["jailer"], "jailer": good["firecracker"]},
            ToolMissing,
            "should be firecracker",
        ),
        "two releases": (good | {"jailer": pair("1.14.4")["jailer"]}, ToolMissing, "1.15.1 and jailer of 1.14.4"),
        "a build between": (pair("1.16.0-dev"), ToolMissing, "no release"),
        "no program": (good | {"jailer": b"#!/bin/sh\necho Jailer v1.15.1\n"}, InvalidSpec, "no program for x86_64"),
        "a short one": (good | {"jailer": good["jailer"][:10]}, InvalidSpec, "no program"),
        "another processor": (good | {"jailer": arm(good["jailer"])}, InvalidSpec, "no program"),
        "silent": (good | {"jailer": made("")}, ToolFailed, "told no version"),
        "one alone": ({"firecracker": good["firecracker"]}, InvalidSpec, "has no jailer"),
        "neither": ({"LICENSE": b""}, InvalidSpec, "no firecracker and no jailer"),
    }
    for number, (case, (files, kind, words)) in enumerate(wrong.items()):
        for form, make in KINDS.items():
            with pytest.raises(kind, match=words):
                install(vmm, make(tmp_path / f"{form}{number}", files))
            assert everything(vmm) == before, case
    assert find_build(vmm) == build


def arm(program: bytes) -> bytes:
    return program[:18] + (183).to_bytes(2, "little") + program[20:]


@needs_tools
def test_one_that_never_ends_is_ended(
    vmm: Path,
    tmp_path: Path,
    pair: Callable[[str], dict[str, bytes]],
    made: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    no_trace: None,
) -> None:
    monkeypatch.setattr(release, "VERSION_S", 0.3)
    with pytest.raises(ToolFailed, match=r"within 0\.3 s"):
        install(vmm, folder_of(tmp_path / "source", pair("1.15.1") | {"firecracker": made("x", True)}))
    assert everything(vmm) == []


@needs_tools
def test_archives_that_are_broken_or_hostile(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = pair("1.15.1")
    whole = tgz_of(tmp_path / "whole", good).read_bytes()
    wheel = wheel_of(tmp_path / "wheel", good).read_bytes()
    wrong = {
        "cut": whole[: len(whole) // 2],
        "cut in its head": whole[:5],
        "flipped": whole[:600] + bytes([whole[600] ^ 255]) + whole[601:],
        "no tar": gzipped(b"hello" * 1000),
        "an empty tar": gzipped(bytes(1024)),
        "nothing": b"",
        "a cut wheel": wheel[:-30],
        "text": b"#!/bin/sh\n",
        "twice": tgz_of(tmp_path / "twice", good, **{"x/firecracker": good["firecracker"]}).read_bytes(),
    }
    for name, data in wrong.items():
        (source := tmp_path / "source").write_bytes(data)
        with pytest.raises(InvalidSpec):
            install(vmm, source)
        assert everything(vmm) == [], name
    monkeypatch.setattr(release, "MAX_PROGRAM_BYTES", 1000)
    for make in KINDS.values():
        with pytest.raises(InvalidSpec, match="longer than"):
            install(vmm, make(tmp_path / f"long{make.__name__}", good))
    monkeypatch.setattr(release, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(InvalidSpec, match="larger than allowed"):
        install(vmm, tmp_path / "whole")
    with pytest.raises(InvalidSpec, match="there is no"):
        install(vmm, tmp_path / "nowhere")


def gzipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=3000), st.sampled_from([b"", release.GZIP, release.ZIP, b"gz"]))
def test_whatever_is_in_the_file(tmp_path: Path, data: bytes, magic: bytes) -> None:
    (source := tmp_path / "source").write_bytes(gzipped(data) if magic == b"gz" else magic + data)
    with pytest.raises(InvalidSpec):
        release.unpack(source, tmp_path)


@needs_tools
def test_the_disk_is_full(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "source", pair("1.15.1"))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(builds, "sync_file", full)
    with pytest.raises(HostFull, match="No space left"):
        install(vmm, source)
    assert everything(vmm) == []


@needs_tools
@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root gives nothing away")
def test_it_belongs_to_whom_the_home_belongs_to(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]]
) -> None:
    vmm.parent.mkdir()
    os.chown(vmm.parent, 12345, 12345)
    vmm.parent.chmod(0o700)
    build = install(vmm, folder_of(tmp_path / "source", pair("1.15.1")))
    assert {path.stat().st_uid for path in (vmm, *vmm.rglob("*"))} == {12345}
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert b"sha256" not in b"".join(name.encode() for name in os.listxattr(build.firecracker))
    assert len(os.listxattr(build.jailer)) == 1  # approved (host/approval.py)


@needs_tools
@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has nobody to be careful of")
def test_root_follows_no_link_of_the_homes_owner(
    vmm: Path, tmp_path: Path, roots: Path, pair: Callable[[str], dict[str, bytes]]
) -> None:
    """The daemon, whose home it is, may be anybody's by then."""
    source = folder_of(tmp_path / "source", pair("1.15.1"))
    sha256 = hashlib.sha256((source / "firecracker").read_bytes()).hexdigest()
    vmm.parent.mkdir()
    os.chown(vmm.parent, 12345, 12345)
    vmm.symlink_to(roots)
    with pytest.raises(HostError, match="was not installed"):
        install(vmm, source)
    vmm.unlink()
    vmm.mkdir()
    os.chown(vmm, 12345, 12345)
    (vmm / sha256).symlink_to(roots)
    with pytest.raises(HostError, match="was not installed"):
        install(vmm, source)
    assert list(roots.iterdir()) == []
    assert (roots.stat().st_uid, roots.stat().st_mode & 0o7777) == (0, 0o755)
    assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_tools
def test_another_jailer_beside_the_same_firecracker(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], made: Callable[..., bytes]
) -> None:
    """The one that was checked last is the one that is used."""
    files = pair("1.15.1")
    install(vmm, folder_of(tmp_path / "one", files))
    other = files | {"jailer": made("Jailer v1.15.1\n\nof another build")}
    assert install(vmm, folder_of(tmp_path / "other", other)) == find_build(vmm)
    assert find_build(vmm).jailer.read_bytes() == other["jailer"]


# ------------------------------------------------------------------------------------------------- fetching


class Site(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@needs_tools
def test_the_pinned_one_is_fetched(
    vmm: Path, tmp_path: Path, pair: Callable[[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "TELL_EVERY_S", -1)
    archive = tgz_of(tmp_path / "release.tgz", pair("1.15.1"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    said: list[str] = []
    with served(tmp_path) as site:
        pinned = Release(PINNED, f"{site}/release.tgz", sha256)
        build = builds.install(vmm, None, said.append, fetched=pinned)
        assert find_build(vmm) == build
        assert said[0] == "fetching Firecracker 1.15.1 from 127.0.0.1"
        assert "fetched 0 of 0 MiB" in said
        assert len(everything(vmm)) == 5

        with pytest.raises(HostError, match="is not Firecracker") as refused:
            install(vmm, None, fetched=replace(pinned, sha256="0" * 64))
        assert refused.value.evidence["sha256"] == sha256
        with pytest.raises(HostError, match="404"):
            install(vmm, None, fetched=replace(pinned, url=f"{site}/gone"))
        monkeypatch.setattr(release, "MAX_ARCHIVE_BYTES", 100)
        with pytest.raises(HostError, match="longer than"):
            install(vmm, None, fetched=pinned)
        monkeypatch.setattr(release, "MAX_ARCHIVE_BYTES", 1 << 20)
        monkeypatch.setattr(release, "FETCH_S", -1)
        with pytest.raises(HostError, match="not done in"):
            install(vmm, None, fetched=pinned)
    with pytest.raises(HostError, match=r"was not fetched from 127\.0\.0\.1") as alone:  # nobody listens any more
        install(vmm, None, fetched=pinned)
    assert alone.value.hint == f"fetch {pinned.url} elsewhere, then: casemate vmm install firecracker --from FILE"
    assert "\n" not in str(alone.value)
    assert find_build(vmm) == build
    assert len(everything(vmm)) == 5


def test_what_is_pinned() -> None:
    assert RELEASE.version == PINNED
    assert RELEASE.url.startswith("https://github.com/firecracker-microvm/firecracker/releases/download/v1.15.1/")
    assert len(bytes.fromhex(RELEASE.sha256)) == 32


def test_another_processor(vmm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release.platform, "machine", lambda: "aarch64")
    with pytest.raises(NotSupported, match="aarch64"):
        install(vmm, None)
    assert everything(vmm) == []

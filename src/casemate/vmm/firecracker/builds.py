"""The Firecracker that is installed, and those that were: copied once from a release, found by digest afterwards.

    vmm/firecracker.json                  {"sha256"}: which one new machines run under
    vmm/<sha256 of firecracker>/
      firecracker, jailer                 0555
      build.json                          {"format": 1, "vmm": "firecracker", "version", "sha256", "jailer_sha256"}

Written here by an install, whole under a temporary name, then renamed; read by every start of a daemon and every
restore by a kept build; deleted by ``casemate image prune`` once nothing needs it (``build/removal.py``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from casemate.errors import HostError, HostFull, ToolMissing
from casemate.host import approve, remove_folder, sync_file, sync_folder
from casemate.vmm.firecracker import release
from casemate.vmm.firecracker.release import NAMES, RELEASE, Release
from casemate.vmm.firecracker.versions import INSTALL_HINT, Version, check_version, parse_version
from casemate.vmm.kept import DIGEST, INDEXES, installed_build, read_index

FORMAT = 1
NAME = "firecracker"
MANIFEST = "build.json"


@dataclass(frozen=True, slots=True)
class Build:
    """Both programs of one release, in *folder*."""

    folder: Path
    version: Version
    sha256: str  # of firecracker
    jailer_sha256: str

    @property
    def firecracker(self) -> Path:
        return self.folder / "firecracker"

    @property
    def jailer(self) -> Path:
        return self.folder / "jailer"


def find_build(vmm: Path) -> Build:
    """The installed one below *vmm*. Blocks some milliseconds: both programs are hashed. Raises ToolMissing."""
    sha256 = installed_build(vmm, NAME)
    if sha256 is None:
        raise ToolMissing("Firecracker is not installed", hint=INSTALL_HINT)
    return find_kept_build(vmm, sha256)


def find_kept_build(vmm: Path, sha256: str) -> Build:
    """The one of that digest, installed or not. Blocks as find_build. Raises ToolMissing when it is gone or broken."""
    folder = vmm / sha256
    if not DIGEST.fullmatch(sha256) or not (folder / MANIFEST).is_file():
        raise ToolMissing(
            f"the Firecracker build {sha256[:16]} is not kept below {vmm}",
            hint="casemate vmm install firecracker --from FILE, with the release that it came in",
        )
    build = _described(folder)
    if build is None or build.sha256 != sha256 or not _is_whole(build):
        raise ToolMissing(f"the Firecracker build in {folder} is not what was installed", hint=INSTALL_HINT)
    return build


def install(
    vmm: Path,
    source: Path | None,
    on_line: Callable[[str], None],
    *,
    known_bad_allowed: bool = False,
    fetched: Release = RELEASE,
) -> Build:
    """Make the release in *source* the installed one below *vmm*; None: fetch the one we pin. Blocks.

    *source*: a release's archive, a wheel, or a folder with the two programs. *on_line* hears how it goes. After a
    failure, or when interrupted, what was installed before is installed still.
    Raises InvalidSpec for what is no such source, ToolMissing for a release that is not used (versions.py),
    NotSupported for another processor, HostError without a network, HostFull.
    """
    with _explained(vmm), tempfile.TemporaryDirectory(prefix="casemate-vmm-") as staged:  # nobody else's, as vmm may be
        stage = Path(staged)
        if source is None:
            release.check_processor()
            release.fetch(fetched, archive := stage / "release.tgz", on_line)
            release.unpack(archive, stage)
        else:
            on_line(f"reading {source}")
            release.unpack(source, stage)
        build = _examined(stage)
        check_version(build.version, known_bad_allowed=known_bad_allowed)
        on_line(f"Firecracker {build.version}, build {build.sha256[:12]}")
        programs = {name: (stage / name).read_bytes() for name in NAMES}  # the owner cannot see them there
        _make(vmm)
        with _as_owner(vmm) as here:
            _write(here, build, programs)
        kept = replace(build, folder=vmm / build.sha256)
        if os.geteuid() == 0:
            approve(kept.jailer, kept.jailer_sha256)  # the launcher runs no other as root
        with _as_owner(vmm) as here:
            _point(here, build)
        return kept


def _examined(folder: Path) -> Build:
    """Both programs run here, and are of one release."""
    versions = {name: release.ask_version(folder / name, name) for name in NAMES}
    if versions["firecracker"] != versions["jailer"]:
        raise ToolMissing(
            f"firecracker is of {versions['firecracker']} and jailer of {versions['jailer']}",
            hint="take both from one release",
        )
    return Build(folder, versions["firecracker"], *(_digest(folder / name) for name in NAMES))


def _write(vmm: Path, build: Build, programs: Mapping[str, bytes]) -> None:
    """What is there already, whole, stays as it is."""
    new, target = vmm / f".new-{secrets.token_hex(6)}", vmm / build.sha256
    with suppress(ToolMissing):
        if find_kept_build(vmm, build.sha256).jailer_sha256 == build.jailer_sha256:
            return
    try:
        new.mkdir(mode=0o755)
        said = {"version": str(build.version), "sha256": build.sha256, "jailer_sha256": build.jailer_sha256}
        (new / MANIFEST).write_text(json.dumps({"format": FORMAT, "vmm": NAME} | said) + "\n")
        for name, data in programs.items():
            (new / name).write_bytes(data)
        for path in new.iterdir():
            path.chmod(0o444 if path.name == MANIFEST else 0o555)
            sync_file(path)
        if target.exists():  # not what it was; who runs from it has it open
            target.rename(dying := vmm / f".dying-{secrets.token_hex(6)}")
            remove_folder(dying)
        new.rename(target)
        sync_folder(vmm)
    finally:
        remove_folder(new)


def _point(vmm: Path, build: Build) -> None:
    temporary = vmm / f".{secrets.token_hex(6)}"
    try:
        temporary.write_text(json.dumps({"sha256": build.sha256, "version": str(build.version)}) + "\n")
        sync_file(temporary)
        temporary.rename(vmm / INDEXES[NAME])
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(vmm)


def _described(folder: Path) -> Build | None:
    body = read_index(folder / MANIFEST)
    texts = [body.get(key) for key in ("version", "sha256", "jailer_sha256")]
    if body.get("format") != FORMAT or body.get("vmm") != NAME:
        return None
    version, sha256, jailer_sha256 = map(str, texts)
    try:
        return Build(folder, parse_version(version), sha256, jailer_sha256)
    except ToolMissing:
        return None


def _is_whole(build: Build) -> bool:
    try:
        return (_digest(build.firecracker), _digest(build.jailer)) == (build.sha256, build.jailer_sha256)
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(vmm: Path) -> None:
    """It belongs to whom the home belongs to."""
    vmm.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _as_owner(vmm.parent.resolve()) as home:
        (home / vmm.name).mkdir(mode=0o710, exist_ok=True)


@contextmanager
def _as_owner(folder: Path) -> Iterator[Path]:
    """*folder*, and root is whoever owns it: who has to be able to delete what is written, and may have links there.

    By a descriptor, since that owner may have no way through the folders above. Raises OSError for a link: it could
    lead to a folder of root's.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    owner, ours = os.fstat(descriptor), (os.geteuid(), os.getegid())
    try:
        if ours[0] == 0:
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        if ours[0] == 0:
            os.seteuid(0)
            os.setegid(ours[1])
        os.close(descriptor)


@contextmanager
def _explained(vmm: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostFull(f"Firecracker was not installed below {vmm}: {error.strerror}") from error
        raise HostError(f"Firecracker was not installed below {vmm}: {error}") from error

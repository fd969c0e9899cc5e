"""Debian packages by name, through apt with the host's own sources, keys and proxies.

Authenticity is apt's: it checks the signature of the archive's index (InRelease) with the keys of the host,
and the index lists the SHA-256 of every package. ``apt-get --print-uris`` tells us that digest before the
download; apt compares it while downloading, and we compare it again whenever a package is taken out of our
cache. Archives without a signature are refused by option, whatever the host's configuration allows.

Works for any user: the package lists are our own, below *cache*, so that nobody needs root to renew them and
another apt on the host renews or removes its own as it likes. Whoever renews them holds the exclusive lock of
``<cache>/apt.lock``, whoever reads them the shared one. ``<cache>/packages/<sha256>.deb`` is written by
``fetch`` under a temporary name and renamed; nothing deletes it but the person who empties the cache.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from casemate.errors import HostError, ToolFailed
from casemate.images.locks import held
from casemate.images.store import digest_of
from casemate.images.tools import Progress, no_progress, run

QUERY_TIMEOUT_S = 60.0
DOWNLOAD_TIMEOUT_S = 900.0
UPDATE_TIMEOUT_S = 300.0
LOCK_TIMEOUT_S = DOWNLOAD_TIMEOUT_S + 60.0
FRESH_S = 12 * 3600.0
EXTRACT_TIMEOUT_S = 300.0

STRICT = (
    "APT::Get::AllowUnauthenticated=false",
    "Acquire::AllowInsecureRepositories=false",
    "Acquire::AllowWeakRepositories=false",
    "Acquire::AllowDowngradeToInsecureRepositories=false",
    "Acquire::ForceHash=SHA256",
    "Acquire::Retries=3",
    "Acquire::http::Timeout=30",
    "Acquire::https::Timeout=30",
    "APT::Sandbox::User=root",  # our download folder is private; as another user this changes nothing
)


@dataclass(frozen=True, slots=True)
class Package:
    """One .deb as the signed index describes it."""

    name: str
    version: str
    size_bytes: int
    sha256: str


_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")


def parse_uris(text: str) -> list[Package]:
    """What ``apt-get --print-uris download`` printed. Raises ToolFailed for a line without a SHA-256."""
    found = []
    for line in text.splitlines():
        if not line.startswith("'"):
            continue
        match = _URI_LINE.fullmatch(line.strip())
        if match is None:
            raise ToolFailed("apt lists a package without a SHA-256", evidence={"line": line[:300]})
        name, version, _ = unquote(match["file"]).split("_", 2)
        found.append(Package(name, version, int(match["size"]), match["sha256"]))
    return found


class Apt:
    """Packages of the host's archives, kept below *cache*; *options* are apt's own, each given as ``-o``."""

    def __init__(self, cache: Path, options: Sequence[str] = ()) -> None:
        self._packages = cache / "packages"
        self._lists = cache / "apt" / "lists"
        self._lock = cache / "apt.lock"
        for folder in (self._packages, self._lists / "partial", cache / "apt" / "archives" / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        own = (
            f"Dir::State::lists={self._lists}",
            f"Dir::Cache={cache / 'apt'}",
        )
        self._options = [word for option in (*own, *options, *STRICT) for word in ("-o", option)]

    def refresh(self, progress: Progress = no_progress, *, force: bool = False) -> None:
        """Renew the package lists unless they are fresh. Raises HostError (archive out of reach), HostFull."""
        stamp = self._lists / ".renewed"
        with held(self._lock, timeout_s=LOCK_TIMEOUT_S):
            if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH_S:
                return
            progress("download", "package lists", None)
            run(["apt-get", *self._options, "update", "--error-on=any"], timeout_s=UPDATE_TIMEOUT_S)
            stamp.touch()

    def versions(self, name: str) -> list[str]:
        """Every version of *name* in the host's archives, newest first."""
        text = self._query("apt-cache", "madison", name)
        rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        return [row[1] for row in rows if len(row) == 3 and row[2].endswith(" Packages")]

    def depends(self, name: str, version: str) -> list[str]:
        """The names *name* depends on directly (the first of alternatives)."""
        text = self._query("apt-cache", "show", f"{name}={version}")
        match = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
        return [d.split("|")[0].split()[0].split(":")[0] for d in match[1].split(",")] if match else []

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """The packages apt would download now (``name`` or ``name=version``); asks no network.

        Raises ToolFailed when the lists don't have one.
        """
        packages = parse_uris(self._query("apt-get", "--print-uris", "download", *names))
        missing = {n.partition("=")[0] for n in names} - {p.name for p in packages}
        if missing:
            raise ToolFailed(
                f"the host's archives have no package {sorted(missing)[0]}",
                hint="see that /etc/apt names a Debian archive",
            )
        return packages

    def _query(self, *argv: str) -> str:
        with held(self._lock, shared=True, timeout_s=LOCK_TIMEOUT_S):
            return run([argv[0], *self._options, *argv[1:]], timeout_s=QUERY_TIMEOUT_S, cwd=Path("/"))

    def fetch(self, packages: Sequence[Package], progress: Progress = no_progress) -> list[Path]:
        """Files of *packages*, from the cache or downloaded; each has the digest the signed index gave.

        Raises HostError (registry out of reach), HostFull, ToolFailed.
        """
        missing = [p for p in packages if not self._cached(p)]
        if missing:
            mib = sum(p.size_bytes for p in missing) / 2**20
            progress("download", f"{len(missing)} packages, {mib:.1f} MiB", None)
            self._download(missing)
        return [self._path(p) for p in packages]

    def _path(self, package: Package) -> Path:
        return self._packages / f"{package.sha256}.deb"

    def _cached(self, package: Package) -> bool:
        path = self._path(package)
        return path.is_file() and digest_of(path) == package.sha256

    def _download(self, packages: Sequence[Package]) -> None:
        names = [f"{p.name}={p.version}" for p in packages]
        with (
            tempfile.TemporaryDirectory(prefix=".new-", dir=self._packages) as folder,
            held(self._lock, shared=True, timeout_s=LOCK_TIMEOUT_S),
        ):
            argv = ["apt-get", *self._options, "download", *names]
            run(argv, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=Path(folder))
            downloaded = {digest_of(path): path for path in Path(folder).glob("*.deb")}
            for package in packages:
                path = downloaded.get(package.sha256)
                if path is None:
                    raise HostError(
                        f"what apt downloaded for {package.name} has not the digest the signed index gives",
                        hint="the mirror changed meanwhile or lies: try again, with --force",
                        evidence={"package": package.name, "sha256": package.sha256},
                    )
                os.replace(path, self._path(package))


def extract(packages: Iterable[Path], into: Path) -> None:
    """Unpack the files of *packages* (no maintainer scripts run) into the folder *into*."""
    into.mkdir(parents=True, exist_ok=True)
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(into)], timeout_s=EXTRACT_TIMEOUT_S)

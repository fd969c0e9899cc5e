"""The packages whose examples are run, fetched by pip as it is configured here, and checked against pinned digests.

An sdist is downloaded without anything of it being run: pip asks a package's build backend for its metadata, and gets a
stand-in's answer. The files are kept in ``CASEMATE_CORPUS``, else in the user's cache, never in the tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
SDISTS = HERE / "sdists.txt"
GUEST = HERE / "guest.txt"  # what the examples import and the image lacks
REFERENCE = HERE / "reference.txt"  # a plain Jupyter, for the other half only
TIMEOUT_S = 600

_STAND_IN = """
import email.parser, os
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    said = email.parser.Parser().parse(open("PKG-INFO", encoding="utf-8"))
    name = "%s-%s.dist-info" % (said["Name"].replace("-", "_"), said["Version"])
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as metadata:
        metadata.write("Metadata-Version: 2.1\\nName: %s\\nVersion: %s\\n" % (said["Name"], said["Version"]))
    return name
"""


class Unfetched(Exception):
    """pip could not get it: what it said last."""


def cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("CASEMATE_CORPUS") or base / "casemate-corpus")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sdist(package: str) -> Path:
    """The file of *package*, pinned in ``sdists.txt``. Raises Unfetched."""
    (pin,) = (line for line in _pins(SDISTS) if line.startswith(f"{package}=="))
    folder = cache() / "sdists"
    version = pin.split()[0].partition("==")[2]
    if not (found := folder / f"{package}-{version}.tar.gz").exists():
        with tempfile.TemporaryDirectory() as temp:
            _write_stand_ins(Path(temp))
            _download([pin], folder, "--no-binary=:all:", "--no-build-isolation", "--use-pep517", modules=temp)
    return found


def files(package: str, wanted: Iterable[str]) -> dict[str, bytes]:
    """What the sdist of *package* has at these paths, and below those that end with a slash."""
    exact = set(wanted)
    below = tuple(path for path in exact if path.endswith("/"))
    found = {}
    with tarfile.open(sdist(package)) as archive:
        for member in archive:
            path = member.name.partition("/")[2]
            if member.isfile() and (path in exact or path.startswith(below)):
                content = archive.extractfile(member)
                assert content is not None
                found[path] = content.read()
    return found


def installed(pins: Path) -> Path:
    """A folder with the wheels of *pins*, for the image's Python. Raises Unfetched."""
    folder = cache() / pins.stem
    if folder.exists():
        return folder
    wheels = cache() / f"{pins.stem}-wheels"
    _download(_pins(pins), wheels, *_FOR_THE_IMAGE)
    making = Path(tempfile.mkdtemp(dir=cache()))
    argv = ["install", "--no-index", "--no-compile", *_FOR_THE_IMAGE, "--target", str(making)]
    _pip([*argv, *(str(path) for path in sorted(wheels.glob("*.whl")))])
    making.chmod(0o755)
    making.rename(folder)
    return folder


_FOR_THE_IMAGE = (
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=abi3",
    "--abi=none",
    *(f"--platform={name}" for name in ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_12_x86_64")),
    "--no-deps",
)


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _write_stand_ins(folder: Path) -> None:
    """One for each name that a backend has in these packages."""
    (folder / "mesonpy.py").write_text(_STAND_IN)
    (folder / "setuptools").mkdir()
    (folder / "setuptools" / "__init__.py").touch()
    legacy = "\nimport sys\n__legacy__ = sys.modules[__name__]\n"
    (folder / "setuptools" / "build_meta.py").write_text(_STAND_IN + legacy)


def _download(pins: list[str], folder: Path, *options: str, modules: str | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=cache()) as temp:
        (Path(temp) / "pins.txt").write_text("\n".join(pins) + "\n")
        into = Path(temp) / "into"
        argv = ["download", "--no-deps", *options, "--require-hashes", "-r", f"{temp}/pins.txt", "-d", str(into)]
        _pip(argv, modules)
        folder.mkdir(exist_ok=True)
        for path in into.iterdir():
            path.rename(folder / path.name)


def _pip(arguments: list[str], modules: str | None = None) -> None:
    env = os.environ | ({"PYTHONPATH": modules} if modules else {})
    argv = [sys.executable, "-m", "pip", arguments[0], "-q", "--disable-pip-version-check", *arguments[1:]]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise Unfetched(done.stderr.strip()[-600:] or f"pip {arguments[0]} ended with {done.returncode}")

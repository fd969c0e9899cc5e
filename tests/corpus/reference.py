"""The other half: the same cells by a plain nbclient with the image's own Python and libraries, without a machine.

The image's root disk is unpacked once, and entered with bubblewrap: no network, and nothing of Casemate's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.corpus import sdists
from tests.corpus.selection import SEED, Example

HERE = Path(__file__).parent
PACKAGES = "usr/local/lib/python3.11/dist-packages"  # Debian's place for what is not Debian's
LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Plain:
    """One example by a plain Jupyter, and how long its kernel had a processor. *wrong*: why it has no whole run."""

    name: str
    seconds: float
    wrong: str | None
    outputs: list[list[dict[str, Any]]]


def root_of(disk: Path) -> Path:
    """The image's root *disk*, unpacked, with what the examples and the plain Jupyter need beside it."""
    root = sdists.cache() / f"root-{disk.name[:16]}"
    if not root.exists():
        making = Path(tempfile.mkdtemp(dir=sdists.cache()))
        argv = ["fsck.erofs", f"--extract={making}", "--overwrite", "--no-preserve-owner", str(disk)]
        subprocess.run(argv, check=True, capture_output=True, timeout=LIMIT_S)
        for pins in (sdists.GUEST, sdists.REFERENCE):
            shutil.copytree(sdists.installed(pins), making / PACKAGES, dirs_exist_ok=True)
        (making / "corpus").mkdir()
        making.chmod(0o755)
        making.rename(root)
    return root


def run_plainly(root: Path, examples: Iterable[Example]) -> tuple[dict[str, str], list[Plain]]:
    """The versions of the libraries, and the runs."""
    with tempfile.TemporaryDirectory() as temp:
        shared = Path(temp)
        (shared / "in.json").write_text(json.dumps({example.name: (SEED, *example.cells) for example in examples}))
        shutil.copy(HERE / "jupyter.py", shared)
        shared.chmod(0o777)
        argv = [*_bwrap(root, shared), "python3", "/corpus/jupyter.py", "/corpus/in.json", "/corpus/out.json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        if done.returncode != 0:
            raise RuntimeError(f"the plain Jupyter failed: {done.stderr[-2000:]}")
        first, *rest = (shared / "out.json").read_text().splitlines()
    runs = [Plain(*json.loads(line)) for line in rest]
    return json.loads(first), [replace(run, outputs=run.outputs[1:]) for run in runs]


def _bwrap(root: Path, shared: Path) -> list[str]:
    """As the guest is: its user, its folder, its environment, no network, and a loopback."""
    environment = {"HOME": "/home/user", "USER": "user", "LOGNAME": "user", "LANG": "C.UTF-8"}
    environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return [
        *("bwrap", "--die-with-parent", "--new-session", "--unshare-all", "--uid", "1000", "--gid", "1000"),
        *("--ro-bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/home/user"),
        *("--bind", str(shared), "/corpus", "--chdir", "/home/user", "--clearenv"),
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
    ]

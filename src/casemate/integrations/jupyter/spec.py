"""Kernelspecs: how Jupyter starts the kernel. Written and removed by ``casemate kernel``, read by Jupyter."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.errors import InvalidSpec, NotFound, RequestError, StateConflict

MODULE = "casemate.integrations.jupyter"
KEPT = ("CASEMATE_HOME", "CASEMATE_URL")  # as they are at install
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Spec:
    """Raises InvalidSpec."""

    name: str = "casemate"
    display_name: str = "Python (Casemate microVM)"
    image: str = "python"
    language: str = "python"
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidSpec(f"{self.name[:100]!a} is no kernel's name", hint="letters, digits, '.', '_' and '-'")
        if self.memory_mib is not None and self.memory_mib < 1:
            raise InvalidSpec(f"--memory {self.memory_mib}: not a number of MiB", hint="--memory 1024")

    def to_json(self, environ: Mapping[str, str]) -> dict[str, Any]:
        argv = [sys.executable, "-m", MODULE, "-f", "{connection_file}"]
        argv += [f"--CasemateKernel.image={self.image}", f"--CasemateKernel.language={self.language}"]
        if self.memory_mib is not None:
            argv.append(f"--CasemateKernel.memory_mib={self.memory_mib}")
        return {
            "argv": argv,
            "display_name": self.display_name,
            "language": self.language.removeprefix("jupyter:"),
            "interrupt_mode": "message",
            "env": {name: environ[name] for name in KEPT if name in environ},
            "metadata": {"debugger": False},
        }


@dataclass(frozen=True, slots=True)
class Installed:
    name: str
    display_name: str
    folder: str
    image: str
    language: str


def install(spec: Spec, *, user: bool = True, prefix: str | None = None, replace: bool = False) -> Path:
    """Where Jupyter has it now. Raises StateConflict for a name that is taken, RequestError for a folder."""
    from jupyter_client.kernelspec import KernelSpecManager

    manager = KernelSpecManager(ensure_native_kernel=False)
    where = Path(manager._get_destination_dir(spec.name.lower(), user=user, prefix=prefix))
    if where.exists() and not (replace and _read(where) is not None):
        raise StateConflict(f"there is a kernel {spec.name} in {where}", hint="choose another --name, or --replace")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(spec.to_json(os.environ), indent=1) + "\n")
        try:
            manager.install_kernel_spec(folder, spec.name, user=user, prefix=prefix)
        except OSError as error:
            raise RequestError(f"{where}: {error.strerror}", hint="--user, or a --prefix you can write to") from error
    return where


def installed() -> list[Installed]:
    """Ours, of all that Jupyter finds."""
    from jupyter_client.kernelspec import KernelSpecManager

    found = KernelSpecManager(ensure_native_kernel=False).find_kernel_specs()
    return [ours for _, folder in sorted(found.items()) if (ours := _read(Path(folder))) is not None]


def remove(name: str) -> Path:
    """Raises NotFound for one that is not there, or not ours."""
    import shutil

    for ours in installed():
        if ours.name == name.lower():
            try:
                shutil.rmtree(ours.folder)
            except OSError as error:
                raise RequestError(f"{ours.folder}: {error.strerror}", hint="whoever installed it can") from error
            return Path(ours.folder)
    raise NotFound(f"there is no kernel {name!a} of Casemate's", hint="casemate kernel ls")


def _read(folder: Path) -> Installed | None:
    """None: not ours, or none."""
    try:
        found = json.loads((folder / "kernel.json").read_bytes())
    except (OSError, ValueError):
        return None
    argv = found.get("argv") if isinstance(found, dict) else None
    if not isinstance(argv, list) or argv[1:3] != ["-m", MODULE]:
        return None
    told = dict(word.split("=", 1) for word in argv[3:] if isinstance(word, str) and "=" in word)
    image, language = (str(told.get(f"--CasemateKernel.{name}", "python")) for name in ("image", "language"))
    return Installed(folder.name, str(found.get("display_name", "")), str(folder), image, language)

"""Settings: read once, frozen, handed down. File < ``CASEMATE_*`` < flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from casemate.errors import InvalidSpec


def default_home(env: Mapping[str, str] = os.environ) -> Path:
    """The system's state folder for root, the XDG data folder for anyone else."""
    if os.geteuid() == 0:
        return Path("/var/lib/casemate")
    data = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME", "/")) / ".local/share")
    return Path(data) / "casemate"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one daemon runs with. Names are those of ``config.toml`` and of ``CASEMATE_<NAME>``."""

    home: Path
    vcpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 1024
    tb_size_mib: int = 32  # the translation cache of an emulated machine; see docs/vmm-contract.md
    uid_base: int = 2_000_000_000  # as root: the daemon's own uid; machines take the ones after it
    uid_count: int = 4096
    idle_exit_s: float = 600.0
    agent_timeout_s: float = 10.0  # how long an agent may be silent before it counts as dead
    boot_timeout_s: float = 60.0  # a cold boot, emulated, takes 5 to 10 s on an idle host
    shape_budget_mib: int = 4096  # disk space for snapshots of other shapes than the default one

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def socket(self) -> Path:
        return self.run / "daemon.sock"


def _convert(name: str, kind: str, value: Any) -> Any:
    try:
        if kind == "Path":
            return Path(str(value)).expanduser().absolute()
        return {"int": int, "float": float, "str": str}[kind](value)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"setting {name}: {value!r} is not a {kind}") from error


def load(env: Mapping[str, str] = os.environ, **flags: Any) -> Settings:
    """The settings of this process. Raises InvalidSpec for a value of the wrong kind or an unknown name."""
    kinds = {f.name: str(f.type) for f in fields(Settings)}
    home = flags.get("home") or env.get("CASEMATE_HOME") or default_home(env)
    path = Path(home) / "config.toml"
    stored: dict[str, Any] = {}
    if path.is_file():
        import tomllib  # late: 20 ms that a client without the file saves

        try:
            stored = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise InvalidSpec(f"{path}: {error}") from error
    if unknown := set(stored) - set(kinds):
        raise InvalidSpec(f"{path}: unknown setting {sorted(unknown)[0]!r}", hint=f"known: {', '.join(kinds)}")
    given = {n: env[f"CASEMATE_{n.upper()}"] for n in kinds if f"CASEMATE_{n.upper()}" in env}
    set_flags = {n: v for n, v in flags.items() if v is not None}
    values = stored | given | set_flags | {"home": home}
    return Settings(**{n: _convert(n, kinds[n], v) for n, v in values.items()})

"""Settings: read once, frozen, handed down. File < ``CASEMATE_*`` < flags."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
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
    vmm: str = "auto"  # which one runs the machines: auto, firecracker, qemu or qemu-tcg; see docs/reference.md
    disk_bytes_per_s: int = 0  # how fast a machine's own disk is at most; 0: as fast as it goes
    disk_operations_per_s: int = 0
    tb_size_mib: int = 32  # the translation cache of an emulated machine; see docs/vmm-contract.md
    uid_base: int = 2_000_000_000  # as root: the daemon's own uid; machines take the ones after it
    uid_count: int = 4096
    allow_weak_jail: bool = False  # as root: run machines also where control groups can't be written
    allow_known_bad_vmm: bool = False  # a Firecracker with known defects, or of an unknown version, is run all the same
    idle_exit_s: float = 600.0
    park_margin_s: float = 60.0  # not parked when a timer of its programs is due so soon
    agent_timeout_s: float = 10.0  # how long an agent may be silent before it counts as dead
    listen: str = ""  # HOST:PORT for TCP beside the unix socket
    tls_cert: str = ""
    tls_key: str = ""
    behind_proxy: tuple[str, ...] = ()  # who does TLS for us: the addresses it connects from
    allow_hosts: tuple[str, ...] = ()  # names that requests over TCP may call us by
    tenants_by_uid: Mapping[int, str] = field(default_factory=dict)  # users of this host who may use the socket
    client_stall_s: float = 300.0  # a client that takes none of its answer for so long has gone
    boot_timeout_s: float = 60.0  # a cold boot, emulated, takes 5 to 10 s on an idle host
    commit_ratio: float = 0.25  # how much of a guest's memory and disk is reserved for it; 1: no overcommit
    memory_budget_mib: int = 0  # for all sandboxes together; 0: what is available at start, less some head-room
    disk_budget_mib: int = 0  # the same for their disks
    admission_wait_s: float = 0.0  # how long a create that does not fit waits before it is refused
    shape_budget_mib: int = 4096  # disk space for snapshots of other shapes than the default one
    pool_refills_at_once: int = 1  # members of pools that are made at the same time
    pools: tuple[Mapping[str, Any], ...] = ()  # ``[[pools]]``: what is always to be ready; see docs/reference.md

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def socket(self) -> Path:
        return self.run / "daemon.sock"


def _texts(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else list(value)
    return tuple(str(word).strip() for word in words if str(word).strip())


def _by_number(value: Any) -> dict[int, str]:
    """A table, or ``1000=alice,1001=bob``."""
    pairs = [word.split("=") for word in _texts(value)] if isinstance(value, str) else value.items()
    return {int(number): str(text).strip() for number, text in pairs}


def _tables(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Tables of the file, or the same as JSON."""
    tables = json.loads(value) if isinstance(value, str) else value
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise ValueError("not a list of tables")
    return tuple(dict(table) for table in tables)


_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else _TRUTH[str(value).lower()]


_KINDS: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": _truth,
    "tuple[str, ...]": _texts,
    "Mapping[int, str]": _by_number,
    "tuple[Mapping[str, Any], ...]": _tables,
}


def _convert(name: str, kind: str, value: Any) -> Any:
    try:
        if kind == "Path":
            return Path(str(value)).expanduser().absolute()
        return _KINDS[kind](value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidSpec(f"setting {name}: {value!r} is not a {kind}") from error


class Origin(StrEnum):
    """Where a setting's value comes from, the later the stronger."""

    DEFAULT = "default"
    FILE = "file"
    ENV = "env"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Found:
    """One setting as it counts: *source* is the file or the variable that says so, empty for a default."""

    name: str
    value: Any
    origin: Origin
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        value = str(self.value) if isinstance(self.value, Path) else self.value
        return {"name": self.name, "value": value, "origin": self.origin.value, "source": self.source}


def explain(env: Mapping[str, str] = os.environ, **flags: Any) -> list[Found]:
    """Every setting of this process with its origin. Raises as load."""
    home_flag = flags.get("home")
    home = home_flag or env.get("CASEMATE_HOME") or default_home(env)
    path = Path(home) / "config.toml"
    stored = _stored(path)
    found = []
    for setting in fields(Settings):
        name, variable = setting.name, f"CASEMATE_{setting.name.upper()}"
        if flags.get(name) is not None:
            value, origin, source = flags[name], Origin.FLAG, ""
        elif variable in env and (name != "home" or env[variable]):
            value, origin, source = env[variable], Origin.ENV, variable
        elif name == "home":  # it says where the file is, so the file cannot
            value, origin, source = home, Origin.DEFAULT, ""
        elif name in stored:
            value, origin, source = stored[name], Origin.FILE, str(path)
        else:
            found.append(Found(name, _default(setting), Origin.DEFAULT))
            continue
        found.append(Found(name, _convert(name, str(setting.type), value), origin, source))
    return found


def _default(setting: Field[Any]) -> Any:
    return setting.default_factory() if setting.default_factory is not MISSING else setting.default


def settings_of(found: Iterable[Found]) -> Settings:
    return Settings(**{one.name: one.value for one in found})


def _stored(path: Path) -> dict[str, Any]:
    """What *path* sets; nothing where there is no such file. Raises InvalidSpec."""
    if not path.is_file():
        return {}
    import tomllib  # late: 20 ms that a client without the file saves

    try:
        stored = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path}: {error}") from error
    except OSError as error:
        raise InvalidSpec(f"{path}: {error.strerror}", hint="it has to be readable by who runs this") from error
    kinds = {f.name for f in fields(Settings)}
    if unknown := set(stored) - kinds:
        raise InvalidSpec(f"{path}: unknown setting {sorted(unknown)[0]!r}", hint=f"known: {', '.join(sorted(kinds))}")
    if "home" in stored:
        raise InvalidSpec(f"{path}: home cannot be set in the home itself", hint="set CASEMATE_HOME")
    return stored


def load(env: Mapping[str, str] = os.environ, **flags: Any) -> Settings:
    """The settings of this process. Raises InvalidSpec for a value of the wrong kind or an unknown name."""
    return settings_of(explain(env, **flags))

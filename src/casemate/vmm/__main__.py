"""``python -m casemate.vmm``: install a VMM, and list those this home has. Needs no daemon.

    install firecracker [--from FILE] [--allow-known-bad] [--json]     lines about how it goes, then what was installed
    ls [--json]

With ``--json`` one object on the last line of stdout, before it lines ``{"say": …}``, and an error as one object on
stderr: what ``casemate vmm`` shows.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

from casemate import config
from casemate.errors import CasemateError, HostError
from casemate.vmm.firecracker.builds import Build, install
from casemate.vmm.firecracker.versions import PINNED
from casemate.vmm.kept import INDEXES, installed_build, kept_builds, read_index


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = config.load()
        if options.verb == "install":
            _install(settings, options)
        else:
            _print(_listed(settings.home / "vmm"), options.json)
    except CasemateError as error:
        print(json.dumps(error.to_json()) if options.json else f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m casemate.vmm", description="Install a VMM; list what is there.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("install", help=f"Firecracker {PINNED} from its release, or any from a file")
    new.add_argument("vmm", choices=["firecracker"])
    new.add_argument("--from", dest="source", type=Path, metavar="FILE", help="a release's archive, or a folder")
    new.add_argument("--allow-known-bad", action="store_true", help="also one with known defects")
    listing = verbs.add_parser("ls", help="what this home has")
    for verb in (new, listing):
        verb.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _install(settings: config.Settings, options: argparse.Namespace) -> None:
    def say(line: str) -> None:
        print(json.dumps({"say": line}) if options.json else line, flush=True)

    allowed = options.allow_known_bad or settings.allow_known_bad_vmm
    build = install(settings.home / "vmm", options.source, say, known_bad_allowed=allowed)
    _print(_said(build), options.json)


def _said(build: Build) -> dict[str, Any]:
    programs = {"sha256": build.sha256, "jailer_sha256": build.jailer_sha256}
    return {"vmm": "firecracker", "version": str(build.version), "folder": str(build.folder)} | programs


def _listed(vmm: Path) -> dict[str, Any]:
    """Every build this home has, and which of each VMM new machines would run under. Raises HostError."""
    try:
        builds = [_described(vmm, digest) for digest in kept_builds(vmm)]
    except OSError as error:
        raise HostError(f"{vmm} cannot be read: {error.strerror}", hint="only its owner and root may") from error
    return {"builds": builds, "pinned": str(PINNED)}


def _described(vmm: Path, digest: str) -> dict[str, Any]:
    body = read_index(vmm / digest / "build.json")
    name = str(body.get("vmm", "qemu"))  # QEMU's have a /usr and no such file
    installed = name in INDEXES and installed_build(vmm, name) == digest
    told = body.get("version") or (read_index(vmm / INDEXES[name]).get("version") if installed else None)
    number = re.search(r"\d+(?:\.\d+)+", str(told))
    size_bytes = sum(path.lstat().st_blocks * 512 for path in (vmm / digest).rglob("*"))
    said = {"vmm": name, "version": number[0] if number else None, "sha256": digest}
    return said | {"installed": installed, "size_bytes": size_bytes}


def _print(body: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(body, indent=None if as_json else 1))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader who has seen enough is no error
    sys.exit(main())

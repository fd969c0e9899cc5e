"""What apt is asked to do for setup: the plan as data, then one command after the other with its progress.

Writes one file, ``casemate-backports.sources`` below /etc/apt, which nothing here reads or deletes again: apt does
the first, who removes Casemate the second.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostError, HostFull, ToolFailed

APT_FOLDER = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
QEMU_PACKAGE = "qemu-system-x86"
QEMU_AT_LEAST = (8, 2)
BACKPORTS = "bookworm-backports"
BACKPORTS_FILE = "sources.list.d/casemate-backports.sources"
LIMIT_S = 1800.0
QUERY_LIMIT_S = 60.0
TAIL_LINES = 30
UNREACHABLE = (
    "could not resolve",
    "temporary failure",
    "could not connect",
    "unable to connect",
    "connection timed out",
    "connection refused",
    "network is unreachable",
)

Tell = Callable[[str, float | None], None]
"""``tell(message, fraction)``; the fraction is None where apt does not say."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command, run as root; *stdin* is what it reads."""

    what: str
    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Archive:
    """A Debian archive this machine already uses."""

    uri: str
    signed_by: str = ""


# ---------------------------------------------------------------------------------------------- what there is


def distribution() -> tuple[str, str]:
    """``("debian", "bookworm")``, from os-release; empty where it does not say."""
    text = OS_RELEASE.read_text() if OS_RELEASE.is_file() else ""
    facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return facts.get("ID", "").strip('"'), facts.get("VERSION_CODENAME", "").strip('"')


def stanzas(folder: Path = APT_FOLDER) -> Iterator[dict[str, str]]:
    """Every enabled source of apt's, in deb822's words in lower case: ``uris``, ``suites``, ``signed-by`` ….

    Source: sources.list(5), both of its formats.
    """
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        for text in re.split(r"\n\s*\n", path.read_text()):
            fields: dict[str, str] = {}
            name = ""
            for line in text.splitlines():
                if line.startswith((" ", "\t")) and name:
                    fields[name] += "\n" + line
                elif ":" in line and not line.startswith("#"):
                    name, _, value = line.partition(":")
                    name = name.strip().lower()
                    fields[name] = value.strip()
            if fields.get("enabled", "yes") != "no" and "deb" in fields.get("types", "").split():
                yield fields
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]:
        if path.is_file():
            yield from filter(None, map(_one_line, path.read_text().splitlines()))


def _one_line(line: str) -> dict[str, str] | None:
    match = re.match(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line.strip())
    if match is None:
        return None
    options = dict(o.split("=", 1) for o in (match["options"] or "").split() if "=" in o)
    return {"uris": match["uri"], "suites": match["suite"], "signed-by": options.get("signed-by", "")}


def find_archive(suite: str, folder: Path = APT_FOLDER) -> Archive | None:
    """The first archive from which this machine takes *suite*."""
    for source in stanzas(folder):
        if suite in source.get("suites", "").split() and source.get("uris"):
            return Archive(source["uris"].split()[0], source.get("signed-by", ""))
    return None


def candidate_version(package: str) -> tuple[int, ...] | None:
    """The first two numbers of the version apt would install of itself; None when it knows none."""
    argv = ["apt-cache", "policy", package]
    text = subprocess.run(
        argv, capture_output=True, text=True, timeout=QUERY_LIMIT_S, check=False, env=_english()
    ).stdout
    match = re.search(r"^ +Candidate: (?:\d+:)?(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


# ------------------------------------------------------------------------------------------------- the plan


def plan(packages: Sequence[str]) -> list[Step]:
    """The commands that bring *packages* here, in order; empty when there is nothing to do.

    Raises HostError where apt is not the package manager, or its QEMU is too old.
    """
    if not packages:
        return []
    if not shutil.which("apt-get"):
        raise HostError(
            f"programs are missing, and this distribution has no apt to install them with: {', '.join(packages)}",
            hint="install them by the names your distribution gives them (these are Debian's), then run it again",
        )
    system = distribution()
    steps: list[Step] = []
    from_backports = False
    if QEMU_PACKAGE in packages:
        known = candidate_version(QEMU_PACKAGE)
        from_backports = system == ("debian", "bookworm") and (known is None or known < QEMU_AT_LEAST)
        if known is not None and known < QEMU_AT_LEAST and not from_backports:
            raise HostError(
                f"the QEMU of this release is {known[0]}.{known[1]}; a restore needs 8.2 or newer",
                hint="use Debian 12 or newer, or Ubuntu 24.04 or newer, or install such a QEMU by hand",
            )
        if from_backports and find_archive(BACKPORTS) is None:
            steps.append(_add_backports())
    steps.append(Step("ask the archives what there is", ("apt-get", "update")))
    rest = [name for name in packages if not (from_backports and name == QEMU_PACKAGE)]
    if from_backports:
        steps.append(_install([QEMU_PACKAGE], "-t", BACKPORTS))
    if rest:
        steps.append(_install(rest))
    return steps


def _add_backports() -> Step:
    archive = find_archive("bookworm")
    if archive is None:
        raise HostError(
            "QEMU has to come from bookworm-backports, but no source of apt's names a Debian archive to take it from",
            hint="add bookworm to /etc/apt/sources.list.d/debian.sources and run it again",
        )
    text = f"# Added by `casemate setup`: QEMU 8.2 or newer\nTypes: deb\nURIs: {archive.uri}\nSuites: {BACKPORTS}\n"
    text += "Components: main\n" + (f"Signed-By: {archive.signed_by}\n" if archive.signed_by else "")
    path = str(APT_FOLDER / BACKPORTS_FILE)
    return Step(f"add {BACKPORTS} of {archive.uri}", ("install", "-m", "644", "/dev/stdin", path), stdin=text)


def _install(packages: Sequence[str], *options: str) -> Step:
    argv = ("apt-get", "install", "-y", "--no-install-recommends", *options, *packages)
    return Step(f"install {', '.join(packages)}" + (f" from {options[-1]}" if options else ""), argv)


# --------------------------------------------------------------------------------------------- doing it


def paste(step: Step) -> str:
    """The step as a line for a root shell."""
    line = shlex.join(step.argv)
    if not step.stdin:
        return line
    text = step.stdin.replace("\\", r"\\").replace("%", "%%").replace("\n", r"\n")
    return f"printf {shlex.quote(text)} | {line}"


def check_privilege() -> None:
    """Raises HostError when nothing here makes us root."""
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise HostError("installing packages needs root, and there is no sudo", hint="run as root: casemate setup")


def run(step: Step, tell: Tell) -> None:
    """Carry *step* out as root. Raises HostError, HostFull, ToolFailed: one sentence and a remedy."""
    argv = list(step.argv)
    if argv[0] == "apt-get":
        argv[1:1] = ["-q", "-o", "APT::Status-Fd=1", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]
    if os.geteuid() != 0:
        ask = [] if sys.stdin.isatty() else ["-n"]
        argv = ["sudo", *ask, "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", *argv]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if step.stdin else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_english(),
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    deadline = threading.Timer(LIMIT_S, process.terminate)
    deadline.start()
    try:
        with process:
            if process.stdin is not None:
                process.stdin.write(step.stdin)
                process.stdin.close()
            assert process.stdout is not None
            for line in process.stdout:
                if (progress := parse_status(line)) is not None:
                    tell(*progress)
                else:
                    tail.append(line.rstrip())
    finally:
        deadline.cancel()
    if process.returncode:
        raise explain(step, process.returncode, list(tail))


def parse_status(line: str) -> tuple[str, float] | None:
    """A progress line of apt's as (message, fraction), None for any other line.

    Source: apt's README.progress-reporting: ``dlstatus|pmstatus:what:percent:message``.
    """
    kind, _, rest = line.partition(":")
    if kind not in ("dlstatus", "pmstatus"):
        return None
    match = re.fullmatch(r"(?:[^:]+(?::\w+)?):(?P<percent>[\d.]+):(?P<message>.*)", rest.strip())
    return (match["message"], min(1.0, float(match["percent"]) / 100)) if match else None


def explain(step: Step, status: int, tail: list[str]) -> HostError | HostFull:
    """The one sentence and the remedy for a step that failed."""
    text = "\n".join(tail).lower()
    evidence = {"argv": list(step.argv), "exit": status, "last_lines": tail}
    if "no space left" in text or "don't have enough free space" in text:
        return HostFull(
            "the disk is too full to install packages", hint="free some with: apt-get clean", evidence=evidence
        )
    if "password is required" in text or "not in the sudoers" in text or "are you root" in text:
        return HostError(f"no permission to {step.what}", hint=f"run as root: {paste(step)}", evidence=evidence)
    if any(words in text for words in UNREACHABLE):
        return HostError(
            "the package archive cannot be reached",
            hint="check the network, and http_proxy or /etc/apt/apt.conf.d if there is a proxy, then run it again",
            evidence=evidence,
        )
    if "could not get lock" in text:
        return HostError(
            "another program is installing packages", hint="run it again when that is done", evidence=evidence
        )
    said = next((line for line in reversed(tail) if line.startswith(("E:", "dpkg:"))), tail[-1] if tail else "")
    return ToolFailed(
        f"could not {step.what}: {said.removeprefix('E: ') or f'exit status {status}'}",
        hint=f"see what it says by hand: {paste(step)}",
        evidence=evidence,
    )


def _english() -> Mapping[str, str]:
    return os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}

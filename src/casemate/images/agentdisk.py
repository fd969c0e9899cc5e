"""The agent disk: our guest side with its own interpreter, so that any image works and none can change it.

    /lib/ld-linux-x86-64.so.2, lib*.so.*    the loader and libraries, nothing of them the image's
    /bin/python3.11                         Debian's
    /lib/python3.11/                        the part of its standard library that an agent imports, as .pyc
    /lib/python3.11/casemate/               casemate/{__init__,errors,wire,archive,guest}, as .pyc
    /runtime/                               casemate/runtime as it is: the *image's* Python runs it

Made in two parts: the *base* (everything of Debian) is kept in the cache, because our own part changes often.
The .pyc are of the unchecked-hash kind and have no sources beside them: nothing is stat-ed, no time matters.
What runs in the guest is data here: it is found by path and never imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from casemate.errors import ImageBroken
from casemate.images import erofs
from casemate.images.packages import Apt, extract
from casemate.images.tools import Progress, no_progress, run

FORMAT = 1  # of the layout above; part of what names a cached base
PYTHON = "python3.11"
AGENT_MOUNT = "/run/casemate/agent"
LOADER = "ld-linux-x86-64.so.2"
AGENT_ARGV = (
    f"{AGENT_MOUNT}/lib/{LOADER}", "--library-path", f"{AGENT_MOUNT}/lib",
    "--argv0", f"{AGENT_MOUNT}/bin/{PYTHON}", f"{AGENT_MOUNT}/bin/{PYTHON}",
    "-I", "-S", "-B", "-X", "utf8", "-m", "casemate.guest",
)  # fmt: skip
"""What the initramfs executes as PID 1. Isolated, no site, writes no byte-code."""

PACKAGES = (
    f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib",
    "libc6", "libexpat1", "zlib1g", "libffi8",
)  # fmt: skip
LIBRARIES = ("libc.so.6", "libm.so.6", "libexpat.so.1", "libz.so.1", "libffi.so.8", LOADER)

# The agent speaks bytes on a port and starts processes; it has no use for these.
LEFT_OUT = frozenset(
    """
    __phello__ __pycache__ aifc antigravity audioop bdb cProfile cgi cgitb chunk code codeop
    colorsys compileall config-3.11-x86_64-linux-gnu crypt curses dbm dist-packages distutils
    doctest email ensurepip filecmp ftplib html http idlelib imaplib imghdr lib-dynload lib2to3
    mailbox mailcap mimetypes modulefinder msilib multiprocessing netrc nntplib pdb pickletools pip
    pipes plistlib poplib profile pstats pty pyclbr pydoc pydoc_data site-packages smtpd smtplib
    sndhdr sqlite3 ssl sunau symtable tabnanny telnetlib test this tkinter trace turtle turtledemo
    unittest urllib uu venv wave webbrowser wsgiref xdrlib xml xmlrpc zipapp zipfile
    """.split()  # noqa: SIM905 - a list of 90 strings reads worse
)
EXTENSIONS = (
    "_asyncio",
    "_contextvars",
    "_ctypes",
    "_json",
    "_opcode",
    "_posixshmem",
    "_queue",
    "mmap",
    "resource",
    "termios",
)
ENCODINGS = frozenset(
    "__init__ aliases ascii idna latin_1 punycode unicode_escape utf_16 utf_16_le utf_8".split()  # noqa: SIM905
)
OURS = ("__init__.py", "errors.py", "wire", "archive", "guest")

COMPILE_TIMEOUT_S = 120.0
# Runs on the agent's own interpreter: byte-code belongs to one version. The hash seed is fixed from outside,
# because the order of a set constant follows it.
_COMPILE = """
import os, py_compile, sys
root, shown = sys.argv[1:]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for folder, folders, files in os.walk(root):
    folders.sort()
    for name in sorted(files):
        if name.endswith('.py'):
            source = os.path.join(folder, name)
            py_compile.compile(source, source + 'c', shown + source[len(root):], doraise=True,
                               invalidation_mode=mode)
            os.unlink(source)
"""


def package_root() -> Path:
    """Where this installation's ``casemate`` lies, as data."""
    return Path(__file__).resolve().parents[1]


def put_together(base: Path, sources: Path, tree: Path) -> None:
    """Make the disk's tree in the new folder *tree*; what is in it depends on *base* and *sources* only.

    Raises ToolFailed when a file of ours does not compile.
    """
    shutil.copytree(base, tree, symlinks=True)
    add_ours(sources, tree)


def key(base: Path, sources: Path) -> str:
    """What decides the disk's content: the base (its name says which packages) and every file of ours."""
    sha = hashlib.sha256(f"{FORMAT} {erofs.COMPRESSION} {base.name}\n".encode())
    for path in _files_of_ours(sources):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        sha.update(f"{path.relative_to(sources)} {content}\n".encode())
    return sha.hexdigest()


def find_base(cache: Path) -> Path | None:
    """The newest base in *cache* that was made by this very recipe."""
    found = [(p.stat().st_mtime_ns, p) for p in cache.glob(f"agent-base-{_recipe()}-*")]
    return max(found)[1] if found else None


def make_base(apt: Apt, cache: Path, bench: Path, progress: Progress = no_progress) -> Path:
    """The base of the packages apt has now, from *cache*, or made in the folder *bench* and moved there.

    Raises HostError (registry out of reach), HostFull, ToolMissing, ToolFailed.
    """
    packages = apt.resolve(PACKAGES)
    names = "".join(sorted(f"{p.name} {p.sha256}\n" for p in packages))
    base = cache / f"agent-base-{_recipe()}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
    if not base.is_dir():
        debs = apt.fetch(packages, progress)
        progress("agent", "unpacking the agent's interpreter", None)
        extract(debs, bench / "debian")
        lay_out(bench / "debian", bench / "base")
        os.rename(bench / "base", base)
    base.touch()
    return base


def _recipe() -> str:
    """Names the way a base is made: another list of what is left out is another base."""
    return hashlib.sha256(f"{FORMAT}\n".encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def lay_out(debian: Path, tree: Path) -> None:
    """From Debian's layout to ours, compiled. Raises ImageBroken when a package lacks what we count on."""
    stdlib = tree / "lib" / PYTHON
    (tree / "bin").mkdir(parents=True)
    stdlib.mkdir(parents=True)
    shutil.copy2(_first(debian, [f"usr/bin/{PYTHON}"]), tree / "bin" / PYTHON)
    for library in LIBRARIES:
        folders = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64")
        found = _first(debian, [f"{folder}/{library}" for folder in folders])
        shutil.copy2(found.resolve(), tree / "lib" / library)
        (tree / "lib" / library).chmod(0o755)
    origin = debian / "usr/lib" / PYTHON
    for entry in sorted(origin.iterdir()):
        if entry.stem in LEFT_OUT or entry.name in LEFT_OUT:
            continue
        if entry.is_dir():
            shutil.copytree(entry, stdlib / entry.name, ignore=shutil.ignore_patterns("__pycache__", "test*", "idle*"))
        elif entry.suffix == ".py" and entry.is_file():
            shutil.copy2(entry, stdlib / entry.name)
    for codec in (stdlib / "encodings").iterdir():
        if codec.stem not in ENCODINGS:
            codec.unlink()
    (stdlib / "lib-dynload").mkdir()
    for extension in (origin / "lib-dynload").iterdir():
        if extension.name.split(".")[0] in EXTENSIONS:
            shutil.copy2(extension, stdlib / "lib-dynload" / extension.name)
    compile_tree(tree, stdlib)


def add_ours(sources: Path, tree: Path) -> None:
    """Add casemate's guest side, compiled, and its runtime, as it is, to a copy of the base."""
    ours = tree / "lib" / PYTHON / "casemate"
    for path in _files_of_ours(sources):
        relative = path.relative_to(sources)
        target = tree / relative if relative.parts[0] == "runtime" else ours / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o644)
    compile_tree(tree, ours)


def _files_of_ours(root: Path) -> list[Path]:
    places: Iterable[Path] = (root / name for name in (*OURS, "runtime"))
    files = [p for place in places for p in ([place] if place.is_file() else sorted(place.rglob("*.[jp][sy]")))]
    if not files:
        raise ImageBroken(f"no agent in {root}", hint="install casemate again: its files are incomplete")
    return files


def compile_tree(tree: Path, part: Path) -> None:
    """Replace the sources below *part* by their byte-code, with the interpreter of *tree* itself."""
    lib = tree / "lib"
    loader = [str(lib / LOADER), "--library-path", str(lib), "--argv0", str(tree / "bin" / PYTHON)]
    shown = f"{AGENT_MOUNT}/{part.relative_to(tree)}"
    run(
        [*loader, str(tree / "bin" / PYTHON), "-S", "-s", "-B", "-c", _COMPILE, str(part), shown],
        timeout_s=COMPILE_TIMEOUT_S,
        env={"PYTHONHASHSEED": "0"},
    )


def _first(debian: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (debian / name).exists():
            return debian / name
    raise ImageBroken(f"the packages of the agent's interpreter have no {names[0]}")

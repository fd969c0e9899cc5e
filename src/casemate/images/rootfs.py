"""The built-in images: recipes as data, and the one command line that makes a root disk of each.

mmdebstrap installs the packages into a folder, hooks finish it there and freeze it into an EROFS disk, which
leaves through mmdebstrap's ``download`` hook. As root that is plain; for anyone else it happens in a user
namespace with the user's subordinate ids, where only that hook can write a file the user owns.
Few imports, and ``bootstrap_argv`` is pure: the launcher, which keeps the privilege, calls it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITE: Final = "bookworm"
BOOTSTRAP_TIMEOUT_S: Final = 1800.0
COMPRESSION: Final = "lz4hc,9"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One built-in image. *fonts* asks for matplotlib's font cache; *dropped* are paths that no package may bring."""

    name: str
    packages: tuple[str, ...]
    fonts: bool = False
    dropped: tuple[str, ...] = ()


_PYTHON = (
    "ca-certificates",
    "fonts-dejavu-core",
    "procps",
    "python3",
    "python3-ipython",
    "python3-matplotlib",
    "python3-munkres",  # else fonttools asks for scipy, and that for a C++ compiler: 500 MB
    "python3-numpy",
    "python3-pandas",
)


RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe("python", _PYTHON, fonts=True),
        Recipe(
            "python-full",
            (
                *_PYTHON,
                "curl",
                "git",
                "nodejs",  # without npm: that is 350 packages more, as many as all of these together
                "python3-ipykernel",
                "python3-jupyter-client",
                "python3-pip",
                "python3-requests",
                "python3-scipy",  # Debian's depends on pythran, and that on g++: so there is a C++ compiler, too
            ),
            fonts=True,
            # Only pythran would read these, when it compiles: 195 MB.
            dropped=("/usr/include/boost/*", "/usr/lib/*/openblas-pthread/*.a"),
        ),
        Recipe("tiny", ("python3-minimal",)),
    )
}

_DROPPED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/lintian/*", "/usr/share/bug/*", "/usr/share/gtk-doc/*", "/usr/share/help/*",
)  # fmt: skip

# "$1" is the image's root. Times are kept: a .pyc counts only while its source has the time it was made for.
_USER = (
    'chroot "$1" useradd --create-home --uid 1000 --user-group --shell /bin/bash user',
    r"""printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n' > "$1/etc/hosts" """,
    'echo sandbox > "$1/etc/hostname"',
    'echo LANG=C.UTF-8 > "$1/etc/default/locale"',
    'echo Etc/UTC > "$1/etc/timezone"',
    'ln -sf /usr/share/zoneinfo/Etc/UTC "$1/etc/localtime"',
    # Nothing to wait for: there is no resolver, and asking the loopback is refused at once.
    r"""rm -f "$1/etc/resolv.conf"; printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' """
    '> "$1/etc/resolv.conf"',
)
# mmdebstrap undoes this after the hooks. Its policy-rc.d stays: there is no init that could start services.
_UNDO = (
    'if test -e "$1/sbin/start-stop-daemon.REAL"; then '
    'mv -f "$1/sbin/start-stop-daemon.REAL" "$1/sbin/start-stop-daemon"; fi',
)
_TRIM = (
    'test ! -d "$1/usr/lib/python3/dist-packages" || '
    'find "$1/usr/lib/python3/dist-packages" -depth -type d -name tests -exec rm -rf {} +',
    'rm -rf "$1/usr/share/matplotlib/sample_data"',
)
_COMPILE = (
    'chroot "$1" sh -c \'for d in /usr/lib/python3/dist-packages /usr/lib/python3.[0-9]*; do '
    'test ! -d "$d" || python3 -m compileall -q -x "lib2to3/tests|test/" "$d" || true; done\'',
)
_FONTS = (
    'chroot "$1" env -i HOME=/home/user PATH=/usr/bin:/bin setpriv --reuid 1000 --regid 1000 --clear-groups '
    "python3 -c 'import matplotlib.font_manager'",
)
_CLEAN = (
    'chroot "$1" apt-get clean',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/ldconfig/aux-cache',
    'rm -rf "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old "$1"/var/log/*.log "$1"/var/log/apt',
    'rm -rf "$1"/root/.cache',
    ': > "$1/etc/machine-id"',
)


def hooks(recipe: Recipe, out: Path) -> list[str]:
    """The shell lines that finish the image, in order; the last ones freeze it and bring it to *out*."""
    # /tmp is left out and never emptied: mmdebstrap keeps its apt configuration there while it runs, and an
    # apt without it would work on the host's own files.
    # Frozen beside the root, not inside of it: mkfs must not meet its own output. The folder of both is
    # mmdebstrap's temporary one, where the root of a user namespace may write.
    freeze = (
        f'mkfs.erofs -z{COMPRESSION} -x-1 --exclude-regex="^(dev|proc|sys|tmp)/" --quiet "$1.erofs" "$1"',
        'mv "$1.erofs" "$1/.disk" && chmod 644 "$1/.disk"',
        f"download /.disk {out}",
    )
    return [*_USER, *_UNDO, *_TRIM, *_COMPILE, *(_FONTS if recipe.fonts else ()), *_CLEAN, *freeze]


def bootstrap_argv(recipe: Recipe, out: Path, as_root: bool) -> list[str]:
    """mmdebstrap's command line that writes the root disk of *recipe* to the new file *out*.

    Raises ValueError for an *out* that a hook could misread: absolute, and of plain characters only.
    """
    if not out.is_absolute() or not all(c.isalnum() or c in "/._-" for c in str(out)):
        raise ValueError(f"{str(out)!r} is no plain absolute path")
    return [
        "mmdebstrap",
        "--mode=root" if as_root else "--mode=unshare",
        "--variant=apt",
        "--format=null",
        "--verbose",  # for the Watcher
        "--skip=cleanup",  # the tree is thrown away; what is in the disk was cleaned by the hooks
        f"--include={','.join(recipe.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in (*_DROPPED, *recipe.dropped)),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *(f"--customize-hook={hook}" for hook in hooks(recipe, out)),
        SUITE,
        "-",
    ]


class Watcher:
    """Turns mmdebstrap's lines into progress: call it with each of them.

    Its steps take about these shares of the time; inside of the two that install, packages are counted.
    """

    _STEPS = (
        ("running apt-get update", 0.0, 0.03),
        ("downloading packages", 0.03, 0.05),
        ("extracting archives", 0.05, 0.1),
        ("installing essential packages", 0.1, 0.25),
        ("installing remaining packages", 0.25, 0.85),
        ("running --customize-hook", 0.85, 0.9),
        ("running special hook: download", 0.97, 0.99),
    )
    _COUNT = re.compile(r"\d+ upgraded, (\d+) newly installed")
    _PACKAGE = re.compile(r"(Unpacking|Setting up) (\S+) \(")

    def __init__(self, progress: Callable[[str, str, float | None], None]) -> None:
        self._progress = progress
        self._start, self._end = 0.0, 0.03
        self._packages = 0
        self._acts = 0

    def __call__(self, line: str) -> None:
        if line.startswith("I: "):
            self._step(line[3:].strip())
        elif count := self._COUNT.search(line):
            self._packages, self._acts = int(count[1]), 0
        elif act := self._PACKAGE.match(line):
            self._acts += 1
            share = min(self._acts / (2 * self._packages or 1), 1.0)
            verb = "unpacking" if act[1] == "Unpacking" else "setting up"
            fraction = self._start + (self._end - self._start) * share
            self._progress("root", f"{verb} {act[2].split(':')[0]}", round(fraction, 3))

    def _step(self, text: str) -> None:
        for sign, start, end in self._STEPS:
            if text.startswith(sign):
                self._start, self._end, self._acts = start, end, 0
                if "mkfs.erofs" in text:
                    self._progress("root", "freezing the root disk", 0.9)
                elif start < 0.85:
                    self._progress("root", sign, start)
                return

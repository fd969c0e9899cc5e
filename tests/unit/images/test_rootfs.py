"""The plan of a root disk: an argv, and what mmdebstrap's lines tell of its progress."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from casemate.images import RECIPES
from casemate.images.rootfs import Watcher, bootstrap_argv, hooks

OUT = Path("/some/place/disk")


@pytest.mark.parametrize("as_root", [True, False])
def test_the_plan_installs_the_packages_and_delivers_one_disk(as_root: bool) -> None:
    argv = bootstrap_argv(RECIPES["python"], OUT, as_root)
    assert argv[0] == "mmdebstrap"
    assert ("--mode=root" in argv) is as_root
    assert ("--mode=unshare" in argv) is not as_root
    packages = next(a for a in argv if a.startswith("--include=")).partition("=")[2].split(",")
    assert {"python3", "python3-numpy", "python3-pandas", "python3-matplotlib", "python3-ipython"} <= set(packages)
    assert '--aptopt=APT::Install-Recommends "false"' in argv
    assert argv[-2:] == ["bookworm", "-"]
    assert [a for a in argv if str(OUT) in a] == [f"--customize-hook=download /.disk {OUT}"]


def test_the_full_image_has_what_python_has_and_leaves_out_what_only_a_compiler_reads() -> None:
    plain, full = (bootstrap_argv(RECIPES[name], OUT, as_root=True) for name in ("python", "python-full"))
    assert set(RECIPES["python"].packages) < set(RECIPES["python-full"].packages)
    assert "--dpkgopt=path-exclude=/usr/include/boost/*" in set(full) - set(plain)


@pytest.mark.parametrize("out", ["relative/disk", "/has space", "/a;rm -rf x", "/a$(id)", "/a\nb", "/a'b"])
def test_a_path_that_a_shell_could_misread_is_refused(out: str) -> None:
    with pytest.raises(ValueError, match="plain"):
        bootstrap_argv(RECIPES["python"], Path(out), as_root=True)


def test_the_hooks_never_empty_the_folder_where_mmdebstrap_keeps_apts_configuration() -> None:
    """Once they did: apt, left without it, emptied the package lists of the host."""
    for recipe in RECIPES.values():
        argv = bootstrap_argv(recipe, OUT, as_root=True)
        assert not any('"$1"/tmp' in hook or '"$1/tmp' in hook for hook in hooks(recipe, OUT))
        assert "--skip=cleanup" in argv


def test_only_the_image_with_matplotlib_gets_its_font_cache() -> None:
    with_fonts = {name for name, r in RECIPES.items() if any("font_manager" in h for h in hooks(r, OUT))}
    assert with_fonts == {"python", "python-full"}


def test_each_hook_is_sound_shell() -> None:
    for recipe in RECIPES.values():
        for hook in hooks(recipe, OUT):
            if not hook.startswith("download "):
                subprocess.run(["sh", "-n", "-c", hook], check=True)


def test_the_launcher_can_import_the_plan_cheaply() -> None:
    code = "import sys; from casemate.images.rootfs import bootstrap_argv; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"asyncio", "anyio", "subprocess", "tempfile", "casemate.images.store"} & set(done.stdout.split())


LINES = """\
I: running apt-get update...
Get:1 http://mirror/debian trial InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
I: extracting archives...
I: installing essential packages...
Unpacking libc6:amd64 (2.36-9) ...
Setting up libc6:amd64 (2.36-9) ...
Unpacking dash (0.5) ...
Setting up dash (0.5) ...
Setting up more (0.5) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Unpacking python3 (3.11) ...
Setting up python3 (3.11) ...
I: running --customize-hook in shell: sh -c 'echo sandbox' exec /tmp/x
I: running --customize-hook in shell: sh -c 'mkfs.erofs ...' exec /tmp/x
I: running special hook: download /.disk /out
I: success in 1 seconds
"""


def test_packages_are_counted() -> None:
    told: list[tuple[str, str, float | None]] = []
    watcher = Watcher(lambda *news: told.append(news))
    for line in LINES.splitlines():
        watcher(line)
    fractions = [fraction for _, _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert len(fractions) == len(told)
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert ("root", "unpacking libc6", pytest.approx(0.1375, abs=0.001)) in told
    assert ("root", "setting up python3", 0.85) in told
    assert ("root", "freezing the root disk", 0.9) in told


@pytest.mark.parametrize("line", ["", "I: ", "Unpacking", "Setting up a (1) ...", "\0" * 100, "9 upgraded, x newly"])
def test_odd_lines_are_no_news_and_no_error(line: str) -> None:
    Watcher(lambda *news: None)(line)

"""Firecracker's jailer as a plan, what the launcher asks the kernel about it, and the filter that goes with it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.host import Bind, Jail, Jailer, Limits, behind, seccomp
from casemate.host.account import _capabilities
from casemate.host.jailer import BASE, FILTER, jail_from_json

LIMITS = Limits(memory_bytes=64 << 20, cpu_percent=150, pids=40)
JAILER = Jailer((Bind(5, "/exchange", True), Bind(6, "/kernel")), "one", LIMITS, 3, 4)


def test_either_kind_of_jail_is_what_it_was_on_the_other_side() -> None:
    bubblewrap = Jail((Bind(3, "/usr"),), "one", LIMITS, FILTER, ("/dev/kvm",), output=True)
    for jail in (JAILER, bubblewrap):
        assert jail_from_json(json.loads(json.dumps(jail.to_json()))) == jail


@pytest.mark.parametrize("kind", ["chroot", "", None, 3])
def test_there_is_no_third_kind(kind: Any) -> None:
    with pytest.raises(ValueError, match="no kind of jail"):
        jail_from_json({"kind": kind})


def test_no_jail_has_another_device() -> None:
    for device in ("/dev/mem", "/dev/../etc/passwd", "kvm"):
        with pytest.raises(ValueError, match="no jail has"):
            Jail((), "one", LIMITS, devices=(device,))


@pytest.mark.parametrize("places", [("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a")])
def test_no_file_hides_another(places: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="would hide another"):
        Jailer(tuple(Bind(5, place) for place in places), "one", LIMITS, 3, 4)
    Jailer((Bind(5, "/a"), Bind(6, "/ab")), "one", LIMITS, 3, 4)


def test_its_command_line() -> None:
    argv = JAILER.argv(["--api-sock", "/exchange/api.sock"], 7, 8, 4711, "/tmp")
    bubblewrap, jailer = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert {"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"} <= set(bubblewrap)
    assert "--as-pid-1" not in bubblewrap, "the first process keeps the link to who started it; the jailer loses it"
    assert bubblewrap[bubblewrap.index("--dev-bind") + 1 :][:2] == ["/tmp", BASE]
    assert jailer[0] == "/proc/self/fd/4"
    given = dict(zip(jailer[1::2], jailer[2::2], strict=False))
    assert (given["--uid"], given["--gid"], given["--id"]) == ("4711", "4711", "one")
    assert given["--chroot-base-dir"] == BASE
    assert jailer[jailer.index("--") + 1 :] == ["--api-sock", "/exchange/api.sock"]
    assert not {"--new-pid-ns", "--daemonize", "--netns", "--cgroup", "--parent-cgroup"} & set(jailer)


@pytest.mark.parametrize(
    ("kind", "no_new_privs", "found"),
    [
        ("Prm", "1", 2),
        ("Eff", "1", 2),
        ("Amb", "1", 2),
        ("Bnd", "1", 0),
        ("Inh", "1", 0),
        ("Bnd", "0", 2),
        ("Inh", "0", 2),
    ],
)
def test_a_capability_counts_where_it_is_or_could_be_had(kind: str, no_new_privs: str, found: int) -> None:
    status = {f"Cap{each}": "0" * 16 for each in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert _capabilities([status | {f"Cap{kind}": f"{2:016x}", "NoNewPrivs": no_new_privs}]) == found


def test_no_new_privs_does_keep_the_bounding_set_out_of_reach() -> None:
    """The kernel's word for what the account takes for granted: nothing executed adds to what is permitted."""
    if os.geteuid() != 0:
        pytest.skip("only root has a capability to lose")
    gained = "grep CapPrm /proc/self/status"
    lost = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=+chown", "--no-new-privs", "sh", "-c", gained]
    said = subprocess.run(lost, check=True, capture_output=True, text=True).stdout
    assert int(said.split()[1], 16) == 0


def test_the_one_child_is_found_with_and_without_the_kernels_list(monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.getuid()
    with subprocess.Popen(["sh", "-c", "sleep 60; true"]) as first:
        deadline = time.monotonic() + 10
        while (found := behind.find_vmm(first.pid, uid)) is None:
            assert time.monotonic() < deadline
        assert Path(f"/proc/{found}/comm").read_text() in ("sleep\n", "sh\n")
        assert behind.find_vmm(first.pid, uid + 1) is None, "it has not the VMM's uid"
        assert [pid for pid in Path("/proc").glob("[0-9]*") if behind._parent(pid) == first.pid] == [
            Path(f"/proc/{found}")
        ]
        os.kill(found, 9)
        first.kill()
    assert behind.find_vmm(first.pid, uid) is None, "it has ended"


def test_what_runs_from_a_copy_in_memory_is_still_the_jailer() -> None:
    copy = os.memfd_create("jailer", 0)
    try:
        os.write(copy, Path("/bin/sleep").resolve().read_bytes())
        with subprocess.Popen(["sh", "-c", f"/proc/self/fd/{copy} 60; true"], pass_fds=[copy]) as first:
            deadline = time.monotonic() + 10
            while not any("memfd" in os.readlink(f"/proc/{pid}/exe") for pid in behind._children(first.pid)):
                assert time.monotonic() < deadline
            (child,) = behind._children(first.pid)
            assert behind.find_vmm(first.pid, os.getuid()) is None
            os.kill(child, 9)
            first.kill()
    finally:
        os.close(copy)


def test_the_list_allows_what_it_does_not_name() -> None:
    calls = {call.name: call for call in seccomp.parse((seccomp.FOLDER / f"{FILTER}.txt").read_text())}
    assert not {"mount", "pivot_root", "mknod", "setuid", "ioctl"} & calls.keys(), "the jailer's own and the VMM's"
    code = seccomp.compiled(FILTER)
    assert code.endswith(seccomp._op(seccomp.RETURN, seccomp.ALLOW))
    assert seccomp.compiled("qemu-tcg").endswith(seccomp._op(seccomp.RETURN, seccomp.KILL_PROCESS))

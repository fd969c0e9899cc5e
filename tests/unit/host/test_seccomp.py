"""The filter of system calls: its text, and what the kernel makes of it, tried in children that live under it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from casemate.host import seccomp

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
PTRACE_TRACEME, SOCKET, PTRACE, MOUNT, CLONE = 0, 41, 101, 165, 56
CLONE_NEWUSER, X32_BIT = 0x10000000, 0x40000000
UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_libc = ctypes.CDLL(None, use_errno=True)
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filters are for x86-64")


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def under(code: bytes, act: Callable[[], int]) -> int:
    """How a child ends that installs *code* and then does *act*: its status, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            program = Program(len(code) // 8, code)
            assert _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            assert _libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0) == 0
            status = act()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def call(number: int, *arguments: int) -> Callable[[], int]:
    """Make one system call; the exit status is 0 or the errno."""

    def act() -> int:
        return 0 if _libc.syscall(number, *map(ctypes.c_ulong, arguments)) >= 0 else ctypes.get_errno()

    return act


def start_thread() -> int:
    done = threading.Event()
    threading.Thread(target=done.set).start()
    return 0 if done.wait(10) else 1


def read_and_write() -> int:
    with open("/proc/self/status") as file:
        found = re.search(r"Seccomp_filters:\s+(\d+)", file.read())
    return 0 if found and int(found[1]) >= 1 else 1


@x86_64
@pytest.mark.parametrize("act", [read_and_write, start_thread], ids=["files", "a thread"])
def test_what_a_vmm_does_works(act: Callable[[], int]) -> None:
    assert under(seccomp.compiled("qemu-tcg"), act) == 0


@x86_64
@pytest.mark.parametrize(
    "act",
    [
        lambda: bool(socket.socket(socket.AF_INET)),
        lambda: bool(socket.socket(socket.AF_UNIX)),
        call(PTRACE, PTRACE_TRACEME),
        call(MOUNT, 0, 0, 0, 0),
        call(CLONE, CLONE_NEWUSER | signal.SIGCHLD),
        call(CLONE, signal.SIGCHLD),
        lambda: os.kill(os.getpid(), 0) or 0,
        lambda: os.mkdir("/nowhere/at/all") or 0,  # type: ignore[func-returns-value]
        call(seccomp.X32_BIT + 39),
        call(9999),
    ],
    ids=["inet", "unix", "ptrace", "mount", "namespace", "fork", "kill", "mkdir", "x32", "unknown"],
)
def test_what_it_never_does_kills_it(act: Callable[[], int]) -> None:
    assert under(seccomp.compiled("qemu-tcg"), act) == -signal.SIGSYS


@x86_64
@pytest.mark.parametrize(("number", "name"), [(425, "io_uring_setup"), (435, "clone3"), (319, "memfd_create")])
def test_what_no_filter_could_see_into_is_answered_as_unknown(number: int, name: str) -> None:
    assert under(seccomp.compiled("qemu-tcg"), call(number, 0, 0)) == errno.ENOSYS, name


@pytest.mark.skipif(not UNISTD.is_file(), reason="the kernel's headers are not installed")
@pytest.mark.parametrize("path", sorted(seccomp.FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_each_number_is_that_of_its_name(path: Path) -> None:
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", UNISTD.read_text()))
    for listed in seccomp.parse(path.read_text()):
        assert known[listed.name] == str(listed.number)


@pytest.mark.parametrize(
    "text", ["read", "0", "0 read 1 write", "0 read  9 = 1", "0 read\n0 write", "0 read  0 = x", "0 read refused"]
)
def test_what_is_no_list_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match="system call"):
        seccomp.parse(text)


def test_the_other_table_of_calls_is_closed_whatever_is_listed() -> None:
    code = seccomp.assemble([seccomp.Call(39, "getpid"), seccomp.Call(X32_BIT | 39, "getpid_of_x32")])
    assert verdict(code, 39, (0,) * 6) == seccomp.ALLOW
    assert verdict(code, X32_BIT | 39, (0,) * 6) == seccomp.KILL_PROCESS


def test_a_filter_we_do_not_have_is_refused() -> None:
    for name in ("nothing", "../filters/qemu-tcg", "", "a" * 99):
        with pytest.raises(ValueError, match="there is no filter"):
            seccomp.compiled(name)


def verdict(code: bytes, number: int, arguments: tuple[int, ...], arch: int = seccomp.AUDIT_ARCH_X86_64) -> int:
    """What the kernel's machine would say, by the few instructions there are."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
    held = at = 0
    while True:
        op, if_true, if_false, operand = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        match op:
            case seccomp.LOAD:
                (held,) = struct.unpack_from("<I", data, operand)
            case seccomp.AND:
                held &= operand
            case seccomp.JUMP:
                at += operand
            case seccomp.EQUAL:
                at += if_true if held == operand else if_false
            case seccomp.AT_LEAST:
                at += if_true if held >= operand else if_false
            case seccomp.RETURN:
                return operand
            case _:
                raise AssertionError(f"instruction {op:#x}")


words = strategies.integers(0, 2**64 - 1)
conditions = strategies.builds(
    seccomp.Condition,
    strategies.integers(0, 5),
    strategies.sampled_from([2**64 - 1, 0xFFFF, 0xFF00000000, 0x10000]),
    strategies.lists(strategies.one_of(strategies.integers(0, 3), words), min_size=1, max_size=4).map(tuple),
)
calls = strategies.builds(
    seccomp.Call,
    strategies.integers(0, 40),
    strategies.just("any"),
    strategies.lists(conditions, max_size=3).map(tuple),
    strategies.one_of(strategies.none(), strategies.integers(1, 133)),
)


@hypothesis.given(
    strategies.lists(calls, max_size=12, unique_by=lambda listed: listed.number),
    strategies.integers(0, 45),
    strategies.tuples(*6 * [strategies.one_of(strategies.integers(0, 3), words)]),
)
def test_the_machine_says_what_the_list_says(
    listed: list[seccomp.Call], number: int, arguments: tuple[int, ...]
) -> None:
    wanted = seccomp.KILL_PROCESS
    for found in listed:
        holds = all(arguments[c.index] & c.mask in c.values for c in found.conditions)
        if found.number == number and holds:
            wanted = seccomp.ALLOW if found.refused is None else seccomp.ERRNO | found.refused
    code = seccomp.assemble(listed)
    assert verdict(code, number, arguments) == wanted
    assert verdict(code, number | X32_BIT, arguments) == seccomp.KILL_PROCESS
    assert verdict(code, number, arguments, arch=0x40000003) == seccomp.KILL_PROCESS  # i386, with its own numbers

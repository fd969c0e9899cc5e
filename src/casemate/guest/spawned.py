"""The spawner process and its children: what stands between an order and the user's program.

Forked off the agent while that is small. On an order the spawner clones itself into a child of the agent's
(CLONE_PARENT: half the cost of two forks that leave an orphan); the child walks into its cgroup, says that it waits,
and gets its job later as one message: then it takes its descriptors, drops its rights and becomes the program. Its
socket closes itself on exec: that is how the agent learns that the program runs. A failure is answered as
(errno, stage).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import signal
import socket
import struct
import termios
from typing import Any, NoReturn

MESSAGE_LIMIT = 192 * 1024
PROTECTED = b"-1000"  # oom_score_adj of the agent and the spawner
STAGE_SETUP, STAGE_CWD, STAGE_PROGRAM = range(3)
_NEXT_IN_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
_FDS = socket.CMSG_SPACE(4 * 4)
_CLONE3 = 435  # the same number on every architecture
_CLONE_PARENT = 0x8000
_CLONE_ARGS = struct.pack("11Q", _CLONE_PARENT, *[0] * 10)  # exit_signal stays 0: it is the caller's, SIGCHLD


def serve(sock: socket.socket) -> NoReturn:
    """Be the spawner until the agent hangs up."""
    os.setsid()
    _keep_only(sock.fileno())
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    libc = ctypes.PyDLL(None)  # keeps the interpreter's lock: the child has no other thread to give it to
    arguments = ctypes.create_string_buffer(_CLONE_ARGS)
    gc.disable()
    gc.freeze()
    while True:
        order, fds = _receive(sock)
        if not order:
            os._exit(0)
        if libc.syscall(_CLONE3, arguments, len(_CLONE_ARGS)) == 0:
            _be_child(sock, fds)
        for fd in fds:  # refused: the agent sees a child that hung up before it waited
            os.close(fd)


def _be_child(spawners: socket.socket, fds: list[int]) -> NoReturn:
    """Not a fork to Python, which need not know: one thread, and soon another program."""
    try:
        spawners.close()
        _wait_and_become(socket.socket(fileno=fds[0]), fds[1:])
    finally:
        os._exit(1)


def _wait_and_become(sock: socket.socket, group: list[int]) -> NoReturn:
    os.setsid()
    _write("/proc/self/oom_score_adj", b"0")
    for fd in group:
        os.write(fd, b"0")
        os.close(fd)
    sock.send(b"%d" % os.getpid())
    job, fds = _receive(sock)
    if not job:
        os._exit(0)
    argv, env, cwd, uid, gid, groups, tty = marshal.loads(job)  # noqa: S302 - the agent wrote it
    stage = STAGE_SETUP
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        if tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # it leads a session since it was forked
        if uid is not None:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
        stage = STAGE_CWD
        os.chdir(cwd)
        stage = STAGE_PROGRAM
        _become(argv, env)
    except OSError as error:
        sock.send(b"%d %d" % (error.errno or errno.EIO, stage))
    except ValueError:  # a text no file name can be made of
        sock.send(b"%d %d" % (errno.EINVAL, stage))
    finally:
        os._exit(127)


def _become(argv: list[str], env: dict[str, str]) -> NoReturn:
    """As execvp, with the PATH of *env*. Raises OSError."""
    program = argv[0]
    if "/" in program:
        os.execve(program, argv, env)
    failure = FileNotFoundError(errno.ENOENT, "no such program")
    for folder in env.get("PATH", "/usr/bin:/bin").split(":"):
        try:
            os.execve(f"{folder}/{program}" if folder else f"./{program}", argv, env)
        except OSError as error:
            if error.errno not in _NEXT_IN_PATH:
                raise
            if error.errno == errno.EACCES:
                failure = error  # type: ignore[assignment]
    raise failure


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_LIMIT, _FDS, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _, _, payload in ancillary:
        fds.frombytes(payload)
    return data, fds.tolist()


def send(sock: socket.socket, message: bytes, fds: list[int]) -> None:
    rights: list[tuple[int, int, Any]] = []
    if fds:
        rights.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()))
    sock.sendmsg([message], rights)


def _keep_only(kept: int) -> None:
    """The spawner inherits what the agent had open at that time; none of it is for the user's programs."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    os.closerange(3, kept)
    os.closerange(kept + 1, highest + 1)


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text)
    os.close(fd)

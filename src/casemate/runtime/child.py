"""A child of the zygote: waits for its job and becomes it."""

import array
import errno
import gc
import json
import os
import socket
import sys
import time
import types
from typing import Any, Dict, List, Tuple

from . import surroundings
from .program import Program, allow_own_proc
from .reseed import reseed

MESSAGE_LIMIT = 192 * 1024
_PACKAGE = __name__.rpartition(".")[0]


def receive(sock: socket.socket, fds_at_most: int) -> Tuple[Dict[str, Any], List[int]]:
    """The next message and its descriptors. Raises EOFError when the agent has gone."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(fds_at_most * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_LIMIT, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        raise EOFError("the agent closed the socket")
    return json.loads(data), fds.tolist()


def send(sock: socket.socket, message: Dict[str, Any]) -> None:
    sock.sendall(json.dumps(message).encode("ascii"))


class Refused(Exception):
    """The kernel would not let the job begin; `args[0]` is its errno."""


def wait_until_orphaned(middle: int) -> None:
    """Until PID 1 (or the next subreaper) is our parent, and our exit status is its to collect."""
    while os.getppid() == middle:
        time.sleep(0.001)


def live(sock: socket.socket, program: Program, base_path: List[str], warm: bool) -> None:
    """Wait for a job and prepare this process for it; on return CPython runs the script.

    Never returns when there is no job (the agent closed the socket), when the job was refused, or when
    it has to be run by a new interpreter.
    """
    program.open()
    send(sock, {"event": "waiting"})
    try:
        job, fds = receive(sock, 3)
    except EOFError:
        os._exit(0)
    argv, env = [str(arg) for arg in job["argv"]], surroundings.clean(job["env"])
    try:
        _take_descriptors(fds, keep=[sock.fileno(), program.memory])
        warm = warm and not surroundings.needs_cold(env) and program.fits(os.path.join(job["cwd"], argv[0]))
        if warm:
            program.retitle([b"python3", *map(os.fsencode, argv)])
        _drop_rights(job)
    except OSError as error:
        send(sock, {"event": "refused", "errno": errno.errorcode.get(error.errno or 0, "EIO")})
        os._exit(0)
    reseed(bytes.fromhex(job["seed"]))
    surroundings.replace_environ(env)
    warm = warm and surroundings.set_locale()
    warm = warm and surroundings.take_interpreter(surroundings.find_interpreter(env))
    send(sock, {"event": "started"})
    if not warm:
        _run_cold(argv, env)
    if job.get("context"):
        sys.modules[_PACKAGE + ".context"].attach(sock)
    else:
        sock.close()
        _forget_ourselves()
    program.become(argv[0], os.getcwd())
    program.close()
    surroundings.extend_path(base_path)
    surroundings.honour_flags(env)
    surroundings.rebuild_streams(line_buffered=bool(job.get("context")))
    renew_main()
    sys.argv = argv
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = ["python3", *argv]
    gc.enable()


def _take_descriptors(fds: List[int], keep: List[int]) -> None:
    if len(fds) != 3:
        raise OSError(errno.EBADF, "a job comes with three descriptors")
    for number, fd in enumerate(fds):
        os.dup2(fd, number, inheritable=True)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError as error:
                if error.errno != errno.EBADF:  # the descriptor of the listing itself
                    raise


def _drop_rights(job: Dict[str, Any]) -> None:
    os.umask(0o022)
    if job["uid"] is not None:
        os.setgroups(job["groups"])
        os.setgid(job["gid"])
        os.setuid(job["uid"])
        allow_own_proc()
    os.chdir(job["cwd"])


def renew_main() -> None:
    """A `__main__` that is not among the frozen objects, so that what is in it can be collected at exit."""
    module = types.ModuleType("__main__")
    module.__dict__.update(vars(sys.modules["__main__"]))
    sys.modules["__main__"] = module


def _run_cold(argv: List[str], env: Dict[str, str]) -> None:
    python = surroundings.find_interpreter(env) or sys.executable
    try:
        os.execve(python, ["python3", *argv], env)
    except OSError as error:
        os.write(2, os.fsencode("python3: %s\n" % error))
        os._exit(126)


def _forget_ourselves() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]

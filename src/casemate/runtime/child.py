"""A child of the zygote: waits for its job and becomes it."""

import array
import atexit
import errno
import json
import os
import socket
import sys
import time
import types
from typing import Any, Callable, Dict, List, Tuple

from . import surroundings
from .program import Program, allow_own_proc
from .reseed import reseed

MESSAGE_LIMIT = 192 * 1024
_encode, _decode = json.dumps, json.loads  # in a context json is the user's to patch
PACKAGE = __name__.rpartition(".")[0]
_ourselves: List[str] = []


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
    return _decode(data), fds.tolist()


def send(sock: socket.socket, message: Dict[str, Any]) -> None:
    sock.sendall(_encode(message).encode("ascii"))


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
    _rehearse(base_path)
    try:
        send(sock, {"event": "waiting"})
        job, fds = receive(sock, 3)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    try:
        job = _checked(job)
        begin = _prepare(sock, fds, job, program, warm)
    except OSError as error:
        send(sock, {"event": "refused", "errno": errno.errorcode.get(error.errno or 0, "EIO")})
        os._exit(0)
    send(sock, {"event": "started"})
    begin(sock, job, program, base_path)


def _rehearse(base_path: List[str]) -> None:
    """Go once through what a job will need: the pages it writes to are this child's own from now on.

    This happens before the snapshot; in a clone each page not copied yet costs the first job a fault.
    """
    env = {"PATH": os.defpath, "LANG": "C.UTF-8"}
    reseed(os.urandom(64))
    surroundings.replace_environ(json.loads(json.dumps(env)))
    surroundings.needs_cold(env)
    surroundings.set_locale()
    surroundings.find_interpreter(env)
    surroundings.extend_path(base_path)
    surroundings.rebuild_streams()
    sys.modules[PACKAGE + ".context"].rehearse(os.path.join(os.path.dirname(__file__), "cells.py"))


def _checked(job: Dict[str, Any]) -> Dict[str, Any]:
    """The job, with nothing in it that execve would refuse. Raises OSError (EINVAL)."""
    texts = [*job["argv"], *job["env"], *job["env"].values(), job["cwd"]]
    if not job["argv"] or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise OSError(errno.EINVAL, "not the words of a command")
    if not all(name and "=" not in name for name in job["env"]):
        raise OSError(errno.EINVAL, "not the name of a variable")
    return job


def _prepare(
    sock: socket.socket, fds: List[int], job: Dict[str, Any], program: Program, warm: bool
) -> Callable[[socket.socket, Dict[str, Any], Program, List[str]], None]:
    """Take on the job's descriptors, rights, folder and environment; what is to be done next.

    Raises OSError where the kernel refuses.
    """
    argv, env, is_context = job["argv"], job["env"], bool(job.get("context"))
    _take_descriptors(fds, keep=[sock.fileno(), program.memory])
    if warm and not is_context:
        path = os.path.join(job["cwd"], argv[0])
        warm = program.fits(path) and argv[0][:1] not in ("", "-") and not surroundings.needs_cold(env)
    if warm:
        program.retitle([b"python3", *map(os.fsencode, argv)])
    _drop_rights(job)
    reseed(bytes.fromhex(job["seed"]) + os.urandom(32))  # a job that is copied on its way has the same seed everywhere
    surroundings.replace_environ(env)
    same = surroundings.set_locale() and surroundings.take_interpreter(surroundings.find_interpreter(env))
    if is_context:
        return _as_context if warm else _as_context_in_place
    return _as_script if warm and same else _as_new_interpreter


def _as_script(sock: socket.socket, job: Dict[str, Any], program: Program, base_path: List[str]) -> None:
    sock.close()
    _become(job, program, base_path)
    _forget_ourselves()


def _as_context(sock: socket.socket, job: Dict[str, Any], program: Program, base_path: List[str]) -> None:
    sys.modules[PACKAGE + ".context"].attach(sock, job["context"])
    _become(job, program, base_path)


def _as_context_in_place(sock: socket.socket, job: Dict[str, Any], program: Program, base_path: List[str]) -> None:
    """Where CPython can't be led to another script, the context runs on top of the site import."""
    _as_context(sock, job, program, base_path)
    sys.path.insert(0, "")
    sys.modules[PACKAGE + ".context"].main()
    atexit._run_exitfuncs()
    os._exit(0)


def _as_new_interpreter(sock: socket.socket, job: Dict[str, Any], program: Program, base_path: List[str]) -> None:
    python = surroundings.find_interpreter(job["env"]) or sys.executable
    try:
        os.execve(python, ["python3", *job["argv"]], job["env"])
    except OSError as error:
        os.write(2, os.fsencode("python3: %s\n" % error))
        os._exit(126)


def _become(job: Dict[str, Any], program: Program, base_path: List[str]) -> None:
    program.become(job["argv"][0], os.getcwd())
    program.close()
    surroundings.extend_path(base_path)
    surroundings.honour_flags(job["env"])
    surroundings.rebuild_streams()
    _renew_main()
    sys.argv = list(job["argv"])
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = ["python3", *job["argv"]]


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


def _renew_main() -> None:
    """A `__main__` that is not among the frozen objects, so that what is in it can be collected at exit."""
    module = types.ModuleType("__main__")
    module.__dict__.update(vars(sys.modules["__main__"]))
    sys.modules["__main__"] = module


def note_ourselves() -> None:
    """To be called in the root, when all of us is imported. A walk over sys.modules in a child would copy pages."""
    _ourselves[:] = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]


def _forget_ourselves() -> None:
    for name in _ourselves:
        del sys.modules[name]

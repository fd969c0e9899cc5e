"""The zygote root: imports once, forks on request, runs nothing of the user's itself.

Single-threaded. It forks twice, so that a child is an orphan and PID 1, our agent, is its parent: exit
statuses come from the kernel, and the root has nothing to do while jobs run.
"""

import gc
import importlib
import json
import os
import socket
import sys
import traceback
from typing import Any, Dict, List, Optional

from . import child, leaving
from .program import Program
from .surroundings import THREADS

_TRIAL_PASSED = 41
_OF_CONTEXTS = (".context", ".python_engine", ".tryout")


def main() -> None:
    """Serve the agent until it hangs up. Returns only in a child, once its job is prepared."""
    try:
        serve()
    except BaseException:
        traceback.print_exc()
        os._exit(70)  # never on to a script that is not the user's


def serve() -> None:
    orders: Dict[str, Any] = json.loads(os.environ.pop("CASEMATE_ZYGOTE"))
    sock = socket.socket(fileno=orders["fd"])
    sock.set_inheritable(False)
    program = Program(sys.argv[0])
    base_path = list(sys.path)
    os.environ.pop("PYTHONPATH", None)
    warm = program.complete and _trial(program)
    if warm is None:
        return None  # this is the trial
    leaving.register()
    depth = sys.getrecursionlimit()
    modules = _preload(orders["preload"])
    for part in _OF_CONTEXTS:
        importlib.import_module(child.PACKAGE + part)
    if "IPython" in sys.modules:
        modules["IPython"] += _make_shell()
    sys.modules[child.PACKAGE + ".tryout"].try_out()
    sys.setrecursionlimit(depth)  # parso, which IPython imports, trebles it
    child.note_ourselves()
    leaving.share_modules()
    gc.collect()
    gc.freeze()
    python = "%d.%d.%d" % sys.version_info[:3]
    child.send(sock, {"event": "ready", "warm": warm, "python": python, "modules": modules})
    while True:
        try:
            _, fds = child.receive(sock, 1)
        except EOFError:
            os._exit(0)
        middle = _fork_orphan()
        if middle:
            sock.close()
            child.wait_until_orphaned(middle)
            return child.live(socket.socket(fileno=fds[0]), program, base_path, warm)
        os.close(fds[0])


def _preload(names: List[str]) -> Dict[str, str]:
    """Import what is there; the answer names each module's version, or why it is missing."""
    for name in THREADS:
        os.environ[name] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    found = {}
    for name in names:
        try:
            module = importlib.import_module(name)
            top = sys.modules[name.partition(".")[0]]
            found[name] = str(getattr(top, "__version__", getattr(module, "__version__", "")))
        except Exception as error:  # an image with a broken numpy still has a Python
            found[name] = "missing: %s" % str(error)[:200]
    for name in (*THREADS, "MPLBACKEND"):
        os.environ.pop(name, None)
    return found


def _make_shell() -> str:
    """IPython's shell, for the contexts among the children; what is to be said about it if there is none."""
    try:
        importlib.import_module(child.PACKAGE + ".ipython").make()
    except Exception as error:  # another generation of IPython: contexts do without
        sys.modules.pop(child.PACKAGE + ".ipython", None)
        return " (not used: %s: %s)" % (type(error).__name__, str(error)[:200])
    return ""


def _trial(program: Program) -> Optional[bool]:
    """Let one child become a script of ours: did CPython run it? None in that child, which has to return."""
    pid = os.fork()
    if pid == 0:
        program.open()
        program.become(os.path.join(os.path.dirname(__file__), "trial.py"), "/")
        return None
    _, status = os.waitpid(pid, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == _TRIAL_PASSED


def _fork_orphan() -> int:
    """Fork a child whose parent ends at once. Returns the parent's pid in the child, 0 in the root."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return 0
    middle = os.getpid()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    os.setsid()
    return middle

"""Puts a job's environment, locale and standard streams where a new `python3` would have found them.

Whatever a running interpreter can't take on any more (a hash seed, another encoding, LD_PRELOAD) is not
imitated: `needs_cold` says so, and the child becomes a new `python3`.
"""

import _locale
import codecs
import io
import os
import sys
import time
from typing import Any, List, Mapping, Optional

_HONOURED = {
    "PYTHONPATH",
    "PYTHONUSERBASE",
    "PYTHONUNBUFFERED",
    "PYTHONIOENCODING",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONFAULTHANDLER",
    # read when they are used, or only by an interactive interpreter
    "PYTHONASYNCIODEBUG",
    "PYTHONBREAKPOINT",
    "PYTHONINSPECT",
    "PYTHONSTARTUP",
    "PYTHON_COLORS",
    "PYTHON_HISTORY",
    "PYTHON_BASIC_REPL",
}
_LocaleError: Any = vars(_locale)["Error"]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OF_THE_LOADER = ("LD_", "GLIBC_TUNABLES", "MALLOC_")
_COERCED = ("C", "POSIX", "C.UTF-8", "C.utf8", "UTF-8")


def needs_cold(env: Mapping[str, str]) -> bool:
    """Whether *env* asks for what only a new interpreter can do."""
    for name, value in env.items():
        if value and name.startswith("PYTHON") and name not in _HONOURED:
            return True
        if name.startswith(_OF_THE_LOADER):
            return True
    if _wants_other_libraries(env):
        return True
    try:
        codecs.lookup(env.get("PYTHONIOENCODING", "").partition(":")[0] or "utf-8")
    except LookupError:
        return True
    locale = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or ""
    return not locale.lower().replace("-", "").endswith("utf8")


def _wants_other_libraries(env: Mapping[str, str]) -> bool:
    """Whether libraries that are imported already would have read something else."""
    own_plots = env.get("MPLBACKEND", "agg").lower() != "agg" or env.get("MATPLOTLIBRC") or env.get("MPLCONFIGDIR")
    if "matplotlib" in sys.modules and own_plots:
        return True
    several = "numpy" in sys.modules and (os.cpu_count() or 1) > 1
    return several and any(env.get(name, "1") != "1" for name in THREADS)


def find_interpreter(env: Mapping[str, str]) -> Optional[str]:
    """The `python3` that a shell with *env* would start."""
    for folder in env.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder or ".", "python3")
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def take_interpreter(path: Optional[str]) -> bool:
    """Answer to the name *path*; False when it is another interpreter than this one."""
    if path is None or path == sys.executable:
        return True
    try:
        same = os.path.samefile(path, sys.executable)
    except OSError:
        return False
    of_venv = os.path.exists(os.path.join(os.path.dirname(os.path.dirname(path)), "pyvenv.cfg"))
    if not same or of_venv or sys.prefix != sys.base_prefix:
        return False
    sys.executable = path
    if hasattr(sys, "_base_executable"):
        sys._base_executable = path
    return True


def replace_environ(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    posix = sys.modules["posix"]
    posix.environ.clear()
    posix.environ.update({os.fsencode(name): os.fsencode(value) for name, value in env.items()})
    time.tzset()


def set_locale() -> bool:
    """Take LC_CTYPE from the environment as CPython does; False when there is no such UTF-8 locale."""
    try:
        _locale.setlocale(_locale.LC_CTYPE, "")
    except _LocaleError:
        return False
    return _locale.nl_langinfo(_locale.CODESET) == "UTF-8"


def rebuild_streams() -> None:
    """New sys.stdin, sys.stdout and sys.stderr over descriptors 0, 1 and 2, as at CPython's start."""
    streams = vars(sys)
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        streams[name] = streams["__%s__" % name] = stream(fd)


def stream(fd: int, raw: Any = None) -> io.TextIOWrapper:
    """What CPython puts over descriptor 0, 1 or 2; over *raw*, which is written to line by line."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    encoding = codecs.lookup(encoding or "utf-8").name
    if fd == 2:
        errors = "backslashreplace"
    elif not errors:
        escape = _locale.setlocale(_locale.LC_CTYPE) in _COERCED
        errors = "surrogateescape" if escape else "strict"
    mode = "w" if fd else "r"
    unbuffered = fd != 0 and bool(os.environ.get("PYTHONUNBUFFERED"))
    line_buffered = fd == 2 or raw is not None
    buffer: Any
    if raw is not None:
        buffer = raw if unbuffered else io.BufferedWriter(raw)
    else:
        buffer = open(fd, mode + "b", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
        raw = buffer if unbuffered else buffer.raw
    raw.name = ("<stdin>", "<stdout>", "<stderr>")[fd]
    text: Any = io.TextIOWrapper(buffer, encoding, errors, "\n", line_buffered or raw.isatty(), unbuffered)
    text.mode = mode
    wrapper: io.TextIOWrapper = text
    return wrapper


def extend_path(base: List[str]) -> None:
    """sys.path as the site module builds it from PYTHONPATH and the user's own site folder."""
    import site

    before = os.environ.get("PYTHONPATH")
    sys.path[:] = [os.path.abspath(path) for path in before.split(":")] if before else []
    sys.path += [path for path in base if path not in sys.path]
    site.USER_SITE = site.USER_BASE = None
    site.ENABLE_USER_SITE = site.check_enableusersite()
    user_site = site.getusersitepackages()
    if site.ENABLE_USER_SITE and os.path.isdir(user_site):
        first = next((i for i, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
        rest = sys.path[first:]
        del sys.path[first:]
        site.addsitedir(user_site, None)
        sys.path += [path for path in rest if path not in sys.path]


def honour_flags(env: Mapping[str, str]) -> None:
    if env.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    if env.get("PYTHONFAULTHANDLER"):
        import faulthandler

        faulthandler.enable(file=2)

"""Small scripts, each of which looks at something that a half-hearted imitation gets wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent


@dataclass(frozen=True)
class Script:
    code: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    path: str = ""
    encoding: str = "utf-8"


def _script(code: str, **more: object) -> Script:
    return Script(dedent(code), **more)  # type: ignore[arg-type]


SCRIPTS = {
    "nothing": _script(""),
    "exit code": _script("import sys; sys.exit(7)"),
    "exit text": _script("import sys; sys.exit('good-bye')"),
    "exit none": _script("raise SystemExit"),
    "exit object": _script("raise SystemExit([1, 2])"),
    "exit large": _script("import sys; sys.exit(1000)"),
    "uncaught": _script(
        """
        def f(x):
            return 1 / x
        f(0)
        """
    ),
    "chained": _script(
        """
        def load(name):
            try:
                return {}[name]
            except KeyError as error:
                raise RuntimeError("no " + name) from error
        try:
            load("x")
        except RuntimeError:
            raise ValueError("while handling")
        """
    ),
    "group and notes": _script(
        """
        import sys
        error = ValueError("one")
        if sys.version_info >= (3, 11):
            error.add_note("a note")
            raise ExceptionGroup("many", [error, TypeError("two")])
        raise error
        """
    ),
    "recursion": _script("def f(): f()\nf()"),
    "recursion depth": _script(
        """
        def depth(n):
            try:
                return depth(n + 1)
            except RecursionError:
                return n
        print(depth(0))
        """
    ),
    "syntax error": _script("x = 1\nif x\n    print(x)\n"),
    "indentation error": _script("if 1:\nprint(1)\n"),
    "nul byte": _script("x = 1\0\n"),
    "encoding cookie": _script("# -*- coding: latin-1 -*-\nprint(ascii('\u00e9'))\n", encoding="latin-1"),
    "bad encoding": _script("print('\u00e9')\n", encoding="latin-1"),
    "missing file": _script("", path="missing.py"),
    "a folder": _script("", path="."),
    "absolute path": _script("print(__file__, __import__('sys').argv)", path="./x.py"),
    "path with dots": _script("import sys; print(__file__, sys.argv, sys.path[0])\n1/0", path=".././//{}/x.py"),
    "keyboard interrupt": _script("import os, signal; os.kill(os.getpid(), signal.SIGINT); print('no')"),
    "raised keyboard interrupt": _script("raise KeyboardInterrupt('by hand')"),
    "terminated": _script("import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGTERM)"),
    "aborted": _script("import os; os.abort()"),
    "signal dispositions": _script(
        """
        import signal
        for number in sorted(signal.valid_signals()):
            print(number, signal.getsignal(number))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """
    ),
    "signal handler": _script(
        """
        import os, signal, sys
        def handle(number, frame):
            print("got", number, frame.f_code.co_name)
            sys.exit(3)
        signal.signal(signal.SIGTERM, handle)
        def work():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        work()
        """
    ),
    "atexit": _script(
        """
        import atexit, sys
        atexit.register(print, "first registered")
        @atexit.register
        def last(): print("last registered", sys.modules["__main__"].__name__)
        raise ValueError("before atexit")
        """
    ),
    "atexit raises": _script("import atexit; atexit.register(lambda: 1 / 0)"),
    "thread at exit": _script(
        """
        import threading, time
        def late():
            time.sleep(0.1); print("thread ended")
        threading.Thread(target=late).start()
        print(threading.current_thread(), threading.main_thread() is threading.current_thread(),
              threading.active_count())
        """
    ),
    "thread raises": _script(
        """
        import threading
        t = threading.Thread(target=lambda: 1 / 0, name="worker"); t.start(); t.join()
        """
    ),
    "daemon thread": _script(
        """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print("done")
        """
    ),
    "excepthook": _script(
        """
        import sys, traceback
        def hook(kind, error, tb):
            print("hook", kind.__name__, error, [f.name for f in traceback.extract_tb(tb)])
        sys.excepthook = hook
        def f(): raise KeyError("k")
        f()
        """
    ),
    "excepthook raises": _script(
        """
        import sys
        def hook(*_): raise TypeError("in the hook")
        sys.excepthook = hook
        1 / 0
        """
    ),
    "stack": _script(
        """
        import inspect, sys
        def f():
            print([(frame.function, frame.filename) for frame in inspect.stack()])
            print(sys._getframe(1).f_back)
        f()
        """
    ),
    "globals": _script("print(sorted(globals()), list(locals()) == list(globals()))"),
    "module": _script(
        """
        import sys
        print(__name__, __file__, __doc__, __package__, __spec__, type(__loader__).__name__, __loader__.name,
              __loader__.path, __builtins__, sys.modules["__main__"].__dict__ is globals())
        print(globals().get("__annotations__", "none"), globals().get("__cached__", "none"))
        """
    ),
    "docstring": _script("'''What I do.'''\nprint(__doc__)"),
    "annotations": _script("x: int = 1\nprint(__annotations__)"),
    "sys": _script(
        """
        import sys
        print(sys.argv, sys.path, sys.executable, sys.flags, sys._xoptions)
        print(getattr(sys, "orig_argv", "3.9"))
        print(sys.prefix, sys.base_prefix, sys.warnoptions, sys.dont_write_bytecode, sys.getrecursionlimit())
        print(sys.getfilesystemencoding(), sys.getdefaultencoding(), sys.pycache_prefix)
        print([name for name in sys.modules if "casemate" in name or "custom" in name])
        """,
        args=("a", "--b", "\u00fc", ""),
    ),
    "streams": _script(
        """
        import sys
        for s in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__):
            print(s, s.encoding, s.errors, s.line_buffering, s.write_through, s.newlines, s.mode, s.name,
                  s.buffer.name, s.buffer.mode, s.fileno(), type(s.buffer).__name__)
        """
    ),
    "unbuffered": _script(
        """
        import os, sys
        print("a", end=""); os.write(1, b"b")
        print(sys.stdout.write_through, type(sys.stdout.buffer).__name__)
        """,
        env={"PYTHONUNBUFFERED": "1"},
    ),
    "buffered order": _script("import os; print('second'); os.write(1, b'first\\n')"),
    "io encoding": _script(
        "import sys; print(sys.stdin.encoding, sys.stdout.errors, sys.stderr, sys.stderr.errors, '\u20ac')",
        env={"PYTHONIOENCODING": "latin-1:replace"},
    ),
    "environment": _script(
        """
        import os
        print(dict(os.environ), os.environ is os.environ, os.environb[b"NAME"])
        print(os.popen("env | grep -v ^_= | sort").read())
        """,
        env={"NAME": "v\u00e4lue", "EMPTY": ""},
    ),
    "other locale": _script(
        "import locale, sys; print(locale.setlocale(locale.LC_CTYPE), sys.flags, sys.stdout.errors)",
        env={"LANG": "de_XX.UTF-8"},
    ),
    "no locale": _script(
        "import os, sys; print(sys.flags.utf8_mode, sys.stdout.encoding, dict(os.environ))", env={"LANG": "C"}
    ),
    "time zone": _script("import time; print(time.tzname, time.localtime(0))", env={"TZ": "XYZ-3"}),
    "python path": _script(
        "import sys, neighbour; print(sys.path, neighbour.NAME)", env={"PYTHONPATH": "/nowhere:relative"}
    ),
    "python warnings": _script(
        "import sys, warnings; print(sys.warnoptions); warnings.warn('x')", env={"PYTHONWARNINGS": "error"}
    ),
    "fault handler": _script("import faulthandler; print(faulthandler.is_enabled())", env={"PYTHONFAULTHANDLER": "1"}),
    "fault": _script(
        """
        import faulthandler, os, signal
        faulthandler.enable()
        os.kill(os.getpid(), signal.SIGSEGV)
        """
    ),
    "neighbour": _script("import neighbour; print(neighbour.NAME, neighbour.__file__)"),
    "name guard": _script("if __name__ == '__main__':\n    print('main')"),
    "pickle": _script(
        """
        import pickle
        class Thing:
            def __init__(self): self.x = 1
        data = pickle.dumps(Thing())
        print(data, pickle.loads(data).x, Thing.__module__)
        """
    ),
    "fork": _script(
        """
        import multiprocessing
        def work(n): return n * n
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, range(5)))
        """
    ),
    "spawn": _script(
        """
        import multiprocessing, sys
        def work(n): return n * n, __name__, sys.argv, sys.path[0], sys.executable
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(work, range(2)))
        """,
        args=("arg",),
    ),
    "process pool": _script(
        """
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        def double(x): return 2 * x
        if __name__ == "__main__":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
                print(list(pool.map(double, [1, 2])))
        """
    ),
    "subprocess": _script(
        """
        import subprocess, sys
        print(subprocess.run([sys.executable, "-c", "import sys; print(sys.argv, sys.flags.isolated)"],
              capture_output=True, text=True))
        print(subprocess.run("exit 3", shell=True).returncode)
        print(subprocess._args_from_interpreter_flags())
        """
    ),
    "descriptors": _script("import os; print(sorted(os.listdir('/proc/self/fd'), key=int))"),
    "process": _script(
        """
        import os
        print(open("/proc/self/comm").read(), os.getcwd(), oct(os.umask(0)), os.getuid(), os.getgroups())
        print(os.getpgid(0) == os.getsid(0) or "not a leader", os.nice(0))
        import resource
        print([resource.getrlimit(n) for n in range(10)])
        """
    ),
    "argparse": _script(
        """
        import argparse
        parser = argparse.ArgumentParser(); parser.add_argument("--n", type=int)
        parser.parse_args()
        """,
        args=("--n", "x"),
    ),
    "runpy": _script(
        """
        import runpy, sys
        if len(sys.argv) == 1:
            sys.argv.append("inner")
            print(sorted(runpy.run_path(__file__, run_name="other")))
        else:
            print(__name__, __file__)
        """
    ),
    "warning": _script(
        """
        import warnings
        warnings.warn("mind this")
        warnings.warn("old", DeprecationWarning)
        def f(): warnings.warn("deeper", stacklevel=2)
        f()
        """
    ),
    "resource warning": _script("open(__file__)\nimport asyncio\n"),
    "no newline": _script("print('no newline', end='')"),
    "closed stdout": _script("import sys; sys.stdout.close(); 1 / 0"),
    "closed descriptor": _script("import os; print('lost'); os.close(1)"),
    "broken pipe": _script(
        """
        import os, signal, sys
        r, w = os.pipe(); os.close(r)
        try:
            os.write(w, b"x")
        except BrokenPipeError as error:
            print(error, signal.getsignal(signal.SIGPIPE))
        """
    ),
    "stdin": _script(
        """
        import sys
        print(repr(input()), repr(sys.stdin.readline()), list(sys.stdin))
        try:
            input("prompt ")
        except EOFError as error:
            print(repr(error))
        """,
        stdin="a\r\nb\nc\u00e4\n\nd".encode(),
    ),
    "os exit": _script("import os; print('lost'); os._exit(5)"),
    "asyncio": _script(
        """
        import asyncio
        async def main():
            await asyncio.sleep(0.01)
            proc = await asyncio.create_subprocess_exec("true")
            print(await proc.wait())
            raise LookupError("from a task")
        asyncio.run(main())
        """
    ),
    "dataclass": _script(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        import typing
        @dataclass
        class Point:
            x: int
            y: typing.ClassVar[int] = 1
        print(Point(3), typing.get_type_hints(Point))
        """
    ),
    "doctest": _script(
        """
        def f():
            '''
            >>> f()
            2
            '''
            return 1
        import doctest
        print(doctest.testmod())
        """
    ),
    "destructors": _script(
        """
        import sys
        class Loud:
            def __del__(self, print=print): print("deleted", sys is not None)
        x = Loud()
        y = Loud(); y.me = y
        """
    ),
    "collector": _script("import gc; print(gc.isenabled(), gc.get_threshold(), gc.get_debug())"),
    "unraisable": _script(
        """
        class Bad:
            def __del__(self): raise ValueError("in del")
        Bad()
        """
    ),
    "trace back in own module": _script("import importlib; importlib.import_module('neighbour').missing"),
    "last traceback": _script(
        """
        import atexit, sys
        def show():
            tb = sys.last_traceback
            print(sys.last_type, sys.last_value, tb.tb_frame.f_code.co_name, tb.tb_frame.f_back, tb.tb_next)
        atexit.register(show)
        1 / 0
        """
    ),
    "inspect source": _script("import inspect\ndef f(): pass\nprint(inspect.getsource(f), inspect.getfile(f))"),
    "standard streams by name": _script("open('/dev/stdout', 'w').write('by name\\n')"),
    "site": _script(
        "import site; print(site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE, site.getsitepackages())",
        env={"HOME": "/tmp/somebody"},
    ),
}

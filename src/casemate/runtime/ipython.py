"""IPython in a context, without its run_cell: magics, `display`, completion, and the printers that users register.

A shell takes a second of an emulated guest's time to make. So it is made in the zygote's root, which runs nothing of
the user's, and leaves no trace there: what becomes a script is in no IPython. A context takes it up.
"""

import atexit
import builtins
import os
import re
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Tuple

from IPython.core import interactiveshell
from IPython.core.builtin_trap import BuiltinTrap
from IPython.core.completer import provisionalcompleter, rectify_completions
from IPython.core.display_functions import display
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import DisplayFormatter
from IPython.core.profiledir import ProfileDir
from IPython.lib.pretty import RepresentationPrinter
from IPython.utils import io as ipython_io
from IPython.utils.text import LSString, SList
from IPython.utils.tokenutil import token_at_cursor
from traitlets.config import Config

from . import failures
from .display import clearing
from .formats import Printers, bundle, tell

_FIRST_WORD = re.compile(r"\s*([^\W\d]\w*)")
_MATCHES_LIMIT = 1000
_made: List["Shell"] = []


def make() -> None:
    """Make the shell that this process's children take up; of what is everybody's, nothing is changed."""
    devnull = getattr(ipython_io, "devnull", None)
    if devnull is not None:  # its descriptor is closed in children, and whatever has the number then at their exit
        atexit.unregister(devnull.close)
        devnull.close()
    shell = Shell(config=_config())
    shell.extension_manager.load_extension("storemagic")
    failures.hidden.append(os.path.dirname(interactiveshell.__file__) + os.sep)
    atexit.unregister(shell.atexit_operations)
    _made.append(shell)


def rehearse() -> Printers:
    """Write to what `take_up` writes to, and leave it as it is."""
    if not _made:
        return Printers()
    for kind in Shell._walk_mro():
        kind._instance = kind._instance
    printers: Printers = _made[0].printers
    return printers


def take_up(engine: Any) -> Optional["Shell"]:
    """Make the shell this process's own: from now on user code finds itself in IPython. None: there is none."""
    if not _made:
        return None
    shell = _made[0]
    for kind in Shell._walk_mro():
        kind._instance = shell
    vars(builtins).update(__IPYTHON__=True, display=display, get_ipython=shell.get_ipython)
    sys.modules["__main__"] = shell.user_module
    sys.ps1, sys.ps2 = "In : ", "...: "
    shell.begin(engine)
    return shell


def _config() -> Any:
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.color_info = False
    config.InteractiveShell.loop_runner = "asyncio"
    config.IPCompleter.use_jedi = False
    return config


class _Memory(Dict[str, Any]):
    """What IPython keeps in files of its profile (`%store`, `%bookmark`); here it lives as long as the context."""

    def keys(self, pattern: Optional[str] = None) -> Any:
        prefix = (pattern or "").partition("*")[0]
        return [name for name in super().__iter__() if name.startswith(prefix)]


class _Publisher(DisplayPublisher):  # type: ignore[misc]
    def publish(
        self,
        data: Any,
        metadata: Any = None,
        source: Any = None,
        *,
        transient: Any = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        self._validate_data(data, metadata)
        display_id = (transient or {}).get("display_id")
        body = {"type": "display", "data": data, "metadata": metadata, "display_id": display_id, "update": update}
        self.shell.engine.publish(body)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.engine.publish(clearing(wait))


class _Formatter(DisplayFormatter):  # type: ignore[misc]
    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        engine = self.parent.engine
        data, metadata = bundle(obj, engine.limits, engine.printers) or ({}, {})
        if include:
            data = {mime: value for mime, value in data.items() if mime in include}
        if exclude:
            data = {mime: value for mime, value in data.items() if mime not in exclude}
        return data, metadata


class _Hook(DisplayHook):  # type: ignore[misc]
    """For code that magics run by `run_cell` (`%%capture`), and for who calls sys.displayhook."""

    def __call__(self, result: Any = None) -> None:
        if result is not None and not self.quiet():
            self.fill_exec_result(result)
            self.shell.engine.show_value(result)


class Shell(interactiveshell.InteractiveShell):  # type: ignore[misc]
    """IPython's shell for an engine that runs the cells itself."""

    engine: Any = None

    def __init__(self, **more: Any) -> None:
        kept = getattr(interactiveshell, "PickleShareDB", None)
        if kept is not None:
            interactiveshell.PickleShareDB = lambda folder: _Memory()
        try:
            super().__init__(display_pub_class=_Publisher, displayhook_class=_Hook, **more)
        finally:
            if kept is not None:
                interactiveshell.PickleShareDB = kept
        self._db = _Memory()
        self._own_listeners = self._count_listeners()
        self._own_cleanups = len(self.input_transformers_cleanup)
        self.magics_manager.magics["line"].pop("autoawait", None)
        self.printers = self._make_printers()  # here: it looks at hundreds of objects, each of which a child would copy

    def begin(self, engine: Any) -> None:
        self.engine = engine
        self.starting_dir = os.getcwd()
        self.home_dir = os.path.expanduser("~")
        self.history_manager.dir_hist[:] = [self.starting_dir]
        for name in ("exit", "quit"):  # Python's own raise SystemExit
            self.user_ns.pop(name, None)

    # ------------------------------------------- what the root must not be changed by

    def init_ipython_dir(self, ipython_dir: Any) -> None:
        """No folder is made."""

    def init_profile_dir(self, profile_dir: Any) -> None:
        self.profile_dir = ProfileDir()

    def init_sys_modules(self) -> None:
        """A context does it."""

    def init_prompts(self) -> None:
        """A context does it."""

    def init_virtualenv(self) -> None:
        """There is none."""

    def init_builtins(self) -> None:
        self.builtin_trap = BuiltinTrap(shell=self)
        self.builtin_trap.auto_builtins = {"get_ipython": self.get_ipython}

    def init_display_formatter(self) -> None:
        self.display_formatter = _Formatter(parent=self)
        self.configurables.append(self.display_formatter)

    # ------------------------------------------------------------------------ cells

    def is_for_prefilter(self, code: str) -> bool:
        """Whether this may be a magic without its %, though Python might parse it (`ls -l`, `pwd`)."""
        if not self.automagic or "\n" in code.strip():
            return False
        word = _FIRST_WORD.match(code)
        return word is not None and word[1] in self.magics_manager.magics["line"] and word[1] not in self.user_ns

    @property
    def changes_every_cell(self) -> bool:
        return bool(self.input_transformers_post) or len(self.input_transformers_cleanup) != self._own_cleanups

    def to_python(self, code: str) -> str:
        transformed: str = self.transform_cell(code)
        if len(transformed.splitlines()) == 1:
            transformed = self.prefilter_manager.prefilter_lines(transformed)
        return transformed

    @property
    def has_listeners(self) -> bool:
        return self._count_listeners() != self._own_listeners

    def _count_listeners(self) -> int:
        return sum(map(len, self.events.callbacks.values()))

    def run_with_listeners(self, code: str, execute: Callable[[], Any]) -> None:
        """*execute*, with the events that the user has registered callbacks for."""
        info = SimpleNamespace(raw_cell=code, store_history=True, silent=False, shell_futures=True, cell_id=None)
        outcome = SimpleNamespace(info=info, execution_count=self.execution_count, result=None, success=False)
        outcome.error_before_exec = outcome.error_in_exec = None
        self.events.trigger("pre_execute")
        self.events.trigger("pre_run_cell", info)
        try:
            outcome.result = execute()
            outcome.success = True
        except BaseException as error:
            outcome.error_in_exec = error
            raise
        finally:
            self.events.trigger("post_execute")
            self.events.trigger("post_run_cell", outcome)

    def ask_exit(self) -> None:
        raise SystemExit

    def system(self, cmd: str) -> None:
        """`!cmd`: its output is written to descriptors 1 and 2 by itself, SIGINT reaches it as it reaches us."""
        command = self.var_expand(cmd, depth=1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        status = subprocess.call(command, shell=True, executable=os.environ.get("SHELL"))  # noqa: S602  its purpose
        self.user_ns["_exit_code"] = status if status <= 128 else 128 - status

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """`x = !cmd`: both of its streams."""
        command = self.var_expand(cmd, depth=depth + 1)
        done = subprocess.run(  # noqa: S602  its purpose
            command,
            shell=True,
            executable=os.environ.get("SHELL"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        text = done.stdout.decode("utf-8", "replace")
        return SList(text.splitlines()) if split else LSString(text)

    def enable_matplotlib(self, gui: Any = None) -> Tuple[str, str]:
        """Figures are shown at the end of each cell anyway."""
        if gui not in (None, "inline", "auto", "agg"):
            tell("There is no display for %%matplotlib %s: figures are shown as pictures.\n" % gui)
        return "inline", "agg"

    def enable_gui(self, gui: Any = None) -> None:
        """There is no display."""

    def showtraceback(self, exc_tuple: Any = None, *_: Any, **more: Any) -> None:
        error = (exc_tuple or sys.exc_info())[1]
        if error is not None:
            self.engine.report(error)

    def showsyntaxerror(self, *_: Any, **more: Any) -> None:
        self.showtraceback()

    def showindentationerror(self, *_: Any, **more: Any) -> None:
        self.showtraceback()

    # --------------------------------------------------------- completion, printers

    def complete_at(self, code: str, cursor: int) -> Dict[str, Any]:
        with provisionalcompleter(), self.builtin_trap:
            found = list(islice(rectify_completions(code, self.Completer.completions(code, cursor)), _MATCHES_LIMIT))
        if not found:
            return {"matches": [], "start": cursor, "end": cursor}
        return {"matches": [one.text for one in found], "start": found[0].start, "end": found[0].end}

    def inspect_at(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        with self.builtin_trap:
            try:
                found = self.object_inspect_mime(token_at_cursor(code, cursor), detail_level=detail)
            except KeyError:
                return {"found": False, "data": {}}
        text = found.get("text/plain") if isinstance(found, dict) else None
        return {"found": text is not None, "data": {} if text is None else {"text/plain": str(text)}}

    def _make_printers(self) -> Printers:
        formatters = dict(self.display_formatter.formatters)
        plain = formatters.pop("text/plain")
        by_type, others = plain.type_printers, [formatter.type_printers for formatter in formatters.values()]
        at_first = dict(by_type)

        def text(value: Any) -> str:
            if not plain.pprint:
                return repr(value)
            parts: List[str] = []
            printer = RepresentationPrinter(
                _Output(parts),
                plain.verbose,
                plain.max_width,
                plain.newline,
                max_seq_length=plain.max_seq_length,
                singleton_pprinters=plain.singleton_printers,
                type_pprinters=by_type,
                deferred_pprinters=plain.deferred_printers,
            )
            printer.pretty(value)
            printer.flush()
            return "".join(parts)

        def find(mime: str, value: Any) -> Optional[Callable[[Any], Any]]:
            formatter = formatters.get(mime)
            if formatter is None or not (
                formatter.type_printers or formatter.deferred_printers or formatter.singleton_printers
            ):
                return None
            try:
                found: Callable[[Any], Any] = formatter.lookup(value)
            except KeyError:
                return None
            return found

        def are_plain(kind: type) -> bool:
            return by_type.get(kind) is at_first.get(kind) and not any(kind in printers for printers in others)

        return Printers(text, find, are_plain)


class _Output:
    def __init__(self, parts: List[str]) -> None:
        self.write = parts.append

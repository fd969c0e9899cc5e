"""Python: one living `__main__`, in IPython where the image has it.

IPython's own run_cell takes milliseconds of an emulated guest; so what parses as Python is run here, in the shell's
namespace and with what it would leave behind (In, Out, _), and only the rest goes through its transformations.
"""

import ast
import builtins
import linecache
import os
import re
import select
import socket
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import declared, failures, plots, tables
from .display import make_display
from .engines import Limits, Show
from .formats import Printers, bundle, tell
from .history import History
from .imports import when_imported
from .reseed import Seeds

_TOP_LEVEL_AWAIT: int = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_sources: Dict[str, Any] = linecache.cache
_IS_COROUTINE = 0x80  # CO_COROUTINE
_IPYTHON = __name__.rpartition(".")[0] + ".ipython"
_MATCHES_LIMIT = 1000
_WORD = re.compile(r"[\w.]*$")


def _future_flags() -> int:
    import __future__

    names: List[str] = __future__.all_feature_names
    return sum(getattr(__future__, name).compiler_flag for name in names)


_FUTURES = _future_flags()


class PythonEngine:
    def __init__(self, language: str) -> None:
        self.about = {"language": language, "version": "%d.%d.%d" % sys.version_info[:3]}
        self.limits = Limits()
        self.printers = Printers()
        self._count = 0
        self._futures = 0
        self._is_transformed = False
        self._loop: Any = None
        self._is_idle = False
        self._show: Optional[Show] = None
        self._shell: Any = None
        ipython: Any = sys.modules.get(_IPYTHON)
        if ipython is not None:
            self._shell = ipython.take_up(self)
        self._names = self._begin_plainly() if self._shell is None else self._begin_in_ipython()
        self._reported: Optional[BaseException] = None
        if self._shell is None:
            self._history = History(self._names, {}, [])
        else:
            self._history = History(self._names, self._shell.user_ns_hidden, self._shell.history_manager.input_hist_raw)
        self._seeds = Seeds()
        self.twisters = self._seeds.twisters.address
        when_imported("matplotlib.axes", plots.remember_boxes)
        when_imported("matplotlib.pyplot", plots.take_over(self._display))
        when_imported("plotly.io", declared.take_over(self._display))
        when_imported("pandas", tables.as_in_a_notebook)

    def _begin_plainly(self) -> Dict[str, Any]:
        module = types.ModuleType("__main__", "The context's own.")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        builtins.display = make_display(self._display)  # type: ignore[attr-defined]
        return module.__dict__

    def _begin_in_ipython(self) -> Dict[str, Any]:
        self.printers = self._shell.printers
        names: Dict[str, Any] = self._shell.user_ns
        return names

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        self._show, self.limits = show, limits
        self._count += 1
        end = self._attempt(lambda: self._run_cell(code))
        after = self._attempt(lambda: plots.show_open(self._display, at_end=True))
        return after if end["kind"] == "ok" else end

    def _attempt(self, act: Callable[[], None]) -> Dict[str, Any]:
        """What becomes of *act*, as an end."""
        try:
            act()
        except KeyboardInterrupt:
            return {"kind": "interrupted"}
        except BaseException as error:  # SystemExit is a cell's result too
            return self._describe(error)
        return {"kind": "ok"}

    def _describe(self, error: BaseException) -> Dict[str, Any]:
        try:
            return failures.describe(error, self.limits)
        except KeyboardInterrupt:  # its __str__ hangs
            return {"kind": "interrupted"}

    def _run_cell(self, code: str) -> None:
        shell = self._shell
        if self._has_loop:
            sys.modules["asyncio"].set_event_loop(self._loop)  # asyncio.run() leaves none behind
        self._history.add_input(self._count, code)
        if shell is not None:
            shell.execution_count = self._count
            self._names.pop("__warningregistry__", None)  # a warning is shown once a cell, not once a context
            if shell.has_listeners:
                shell.run_with_listeners(code, lambda: self._execute(code))
                return
        self._execute(code)

    def _execute(self, code: str) -> Any:
        """Run *code* and show the value of its last expression; that value."""
        filename = "<cell %d>" % self._count
        tree = self._parse(code, filename)
        if self._is_transformed:  # so that what a magic captures of a cell of its own stays with it
            with self._shell.display_trap:
                value = self._execute_tree(tree, filename)
            if self._reported is not None:
                raise self._reported
            return value
        return self._execute_tree(tree, filename)

    def _execute_tree(self, tree: Any, filename: str) -> Any:
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        first = self._compile(tree, filename, "exec") if body else None
        rest = self._compile(ast.Expression(last.value), filename, "eval") if last is not None else None
        value = self._evaluate_both(first, rest)
        if last is None:
            return None
        if value is not None and not _is_silenced(filename, last):
            self._history.add_output(self._count, value)
            self.show_value(value)
        return value

    def _parse(self, code: str, filename: str) -> Any:
        """The cell's syntax tree; what is not Python is made Python by IPython, if it knows it."""
        shell = self._shell
        _sources[filename] = (len(code), None, code.splitlines(True), filename)
        if shell is None:
            return self._compile(code, filename, "exec", ast.PyCF_ONLY_AST)
        tree = None
        self._is_transformed, self._reported = False, None
        if not shell.changes_every_cell and not shell.is_for_prefilter(code):
            try:
                tree = self._compile(code, filename, "exec", ast.PyCF_ONLY_AST)
            except SyntaxError:
                tree = None  # a magic, perhaps
        if tree is None:
            code = shell.to_python(code)
            self._is_transformed = True
            _sources[filename] = (len(code), None, code.splitlines(True), filename)
            tree = self._compile(code, filename, "exec", ast.PyCF_ONLY_AST)
        return shell.transform_ast(tree) if shell.ast_transformers else tree

    def _compile(self, source: Any, filename: str, mode: str, flags: int = 0) -> Any:
        compiled = compile(source, filename, mode, flags | self._futures | _TOP_LEVEL_AWAIT, True)
        if isinstance(compiled, types.CodeType):
            self._futures |= compiled.co_flags & _FUTURES
        return compiled

    def _evaluate_both(self, first: Optional[types.CodeType], rest: Optional[types.CodeType]) -> Any:
        """The value of *rest*. Where that alone awaits, *first* finds the loop running, too: it may make a task."""
        if first is not None and rest is not None and rest.co_flags & _IS_COROUTINE & ~first.co_flags:

            async def both() -> Any:
                eval(first, self._names)  # noqa: S307  our purpose
                return await eval(rest, self._names)  # noqa: S307  our purpose

            return self._wait_for(both())
        if first is not None:
            self._evaluate(first)
        return self._evaluate(rest) if rest is not None else None

    def _evaluate(self, compiled: types.CodeType) -> Any:
        value = eval(compiled, self._names)  # noqa: S307  our purpose
        return self._wait_for(value) if compiled.co_flags & _IS_COROUTINE else value

    def _wait_for(self, coroutine: Any) -> Any:
        """Run a cell that awaits something, on the context's own event loop."""
        import asyncio

        if not self._has_loop:
            if self._loop is None:
                os.register_at_fork(after_in_child=self._on_fork)
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # it was interrupted: let it clean up
                task.cancel()
                self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    def report(self, error: BaseException) -> None:
        """A magic has caught *error* to print it (`%run`, `%%time`): it is the cell's end."""
        if self._is_transformed:
            self._reported = self._reported or error
        else:
            tell(failures.format_error(error, self.limits.traceback_bytes))

    def idle(self, orders: socket.socket) -> None:
        """Tasks of the context's event loop go on between its cells."""
        while self._has_loop and self._has_tasks(orders):
            self._loop.add_reader(orders, self._loop.stop)
            self._is_idle = True
            try:
                self._loop.run_forever()
            except BaseException as error:  # a task's SystemExit is not the context's
                tell(failures.format_error(error, self.limits.traceback_bytes))
            finally:
                self._is_idle = False
                self._loop.remove_reader(orders)

    def _on_fork(self) -> None:
        """A process that a task forks between cells ends with the task's step: the orders are not for it."""
        if self._is_idle:
            self._loop.call_soon(_leave)

    @property
    def _has_loop(self) -> bool:
        return self._loop is not None and not self._loop.is_closed()

    def _has_tasks(self, orders: socket.socket) -> bool:
        import asyncio

        return bool(asyncio.all_tasks(self._loop)) and not select.select([orders], [], [], 0)[0]

    def show_value(self, value: Any) -> None:
        self._present(value, {"type": "result"})

    def _display(self, value: Any, more: Optional[Dict[str, Any]] = None) -> None:
        self._present(value, more or {"type": "display"})

    def _present(self, value: Any, more: Dict[str, Any]) -> None:
        body = dict(more)
        if "data" not in body:
            found = bundle(value, self.limits, self.printers)
            if found is None:
                return
            body["data"] = found[0]
            body["metadata"] = {**found[1], **(more.get("metadata") or {})}
        self.publish(body)

    def publish(self, body: Dict[str, Any]) -> None:
        """Send what is a result already."""
        if self._show is not None:
            self._show(body)

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        if self._shell is not None:
            found: Dict[str, Any] = self._shell.complete_at(code, cursor)
            return found
        import rlcompleter

        word = _WORD.search(code[:cursor])
        text = word[0] if word else ""
        completer = rlcompleter.Completer(self._names)
        find = completer.attr_matches if "." in text else completer.global_matches
        matches = sorted({match.rstrip("( )") for match in find(text)})[:_MATCHES_LIMIT] if text else []
        return {"matches": matches, "start": cursor - len(text), "end": cursor}

    def inspect(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        if self._shell is not None:
            found: Dict[str, Any] = self._shell.inspect_at(code, cursor, detail)
            return found
        from .inspecting import describe

        return describe(self._names, code, cursor, detail)

    def reseed(self, entropy: bytes) -> None:
        self._seeds.reseed(entropy)

    def reseed_now(self, entropy: bytes) -> None:
        self._seeds.reseed_now(entropy)

    def close(self) -> None:
        if self._has_loop:
            self._loop.close()


def rehearse() -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The steps of a cell, with no context: what it would show of one and one."""
    ipython: Any = sys.modules.get(_IPYTHON)
    printers = Printers() if ipython is None else ipython.rehearse()
    tree: Any = compile("1 + 1", "<cell 0>", "exec", ast.PyCF_ONLY_AST | _TOP_LEVEL_AWAIT, True)
    value = ast.Expression(tree.body[0].value)
    shown = bundle(eval(compile(value, "<cell 0>", "eval", _TOP_LEVEL_AWAIT, True), {}), Limits(), printers)  # noqa: S307  ours
    assert shown is not None
    return shown


def _leave() -> None:
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)


def _is_silenced(filename: str, last: Any) -> bool:
    """Whether a semicolon follows the last expression."""
    lines: List[str] = _sources[filename][2][last.end_lineno - 1 :]
    lines[:1] = [lines[0].encode()[last.end_col_offset :].decode()] if lines else []
    return any(";" in line.partition("#")[0] for line in lines)

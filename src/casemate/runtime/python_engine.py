"""Python: one living `__main__`."""

import ast
import builtins
import linecache
import sys
import types
from typing import Any, Dict, List, Optional

from . import failures
from .engines import Limits, Show
from .reseed import reseed

_TOP_LEVEL_AWAIT: int = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_IS_COROUTINE = 0x80 | 0x100 | 0x200  # CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR


def _future_flags() -> int:
    import __future__

    names: List[str] = __future__.all_feature_names
    return sum(getattr(__future__, name).compiler_flag for name in names)


_FUTURES = _future_flags()


class PythonEngine:
    def __init__(self, language: str) -> None:
        self.about = {"language": language, "version": "%d.%d.%d" % sys.version_info[:3]}
        self._count = 0
        self._futures = 0
        module = types.ModuleType("__main__", "The context's own.")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        self._names = module.__dict__

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        self._count += 1
        filename = "<cell %d>" % self._count
        linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
        try:
            value = self._execute(code, filename)
            if value is not None:
                builtins._ = value  # type: ignore[attr-defined]
                show({"type": "result", "data": {"text/plain": repr(value)}, "metadata": {}})
        except KeyboardInterrupt:
            return {"kind": "interrupted"}
        except BaseException as error:
            return failures.describe(error, limits)
        return {"kind": "ok"}

    def _execute(self, code: str, filename: str) -> Any:
        """Run *code*; the value of its last expression."""
        tree = self._compile(code, filename, "exec", ast.PyCF_ONLY_AST)
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        if body:
            self._evaluate(self._compile(tree, filename, "exec"))
        if last is None:
            return None
        return self._evaluate(self._compile(ast.Expression(last.value), filename, "eval"))

    def _evaluate(self, compiled: types.CodeType) -> Any:
        return eval(compiled, self._names)  # noqa: S307  our purpose

    def _compile(self, source: Any, filename: str, mode: str, flags: int = 0) -> Any:
        compiled = compile(source, filename, mode, flags | self._futures | _TOP_LEVEL_AWAIT, True)
        if isinstance(compiled, types.CodeType):
            self._futures |= compiled.co_flags & _FUTURES
        return compiled

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        return {"matches": [], "start": cursor, "end": cursor}

    def reseed(self, entropy: bytes) -> None:
        reseed(entropy)

    def close(self) -> None:
        pass

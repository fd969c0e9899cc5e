"""An object as a MIME bundle, by the methods and printers that Jupyter's front ends know."""

import sys
import warnings
from functools import partial
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from . import declared, failures, plots, tables
from .engines import Limits

Bundle = Tuple[Dict[str, Any], Dict[str, Any]]

_METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "application/pdf": "_repr_pdf_",
    "image/jpeg": "_repr_jpeg_",
    "text/latex": "_repr_latex_",
    "application/json": "_repr_json_",
    "application/javascript": "_repr_javascript_",
}
_BINARY = ("image/png", "image/jpeg", "application/pdf")
_AS_THEY_ARE = {int, str, bool, bytes, complex, type(None)}  # nothing to ask them for but their repr
_TRACEBACK_LIMIT = 8_000
_CANARY = "_casemate_no_such_method_"


class Printers(NamedTuple):
    """What the user has registered beside the methods (IPython's formatters). *find* is MIME type, object → printer."""

    text: Callable[[Any], str] = repr
    find: Callable[[str, Any], Optional[Callable[[Any], Any]]] = lambda mime, value: None
    are_plain: Callable[[type], bool] = lambda kind: True


def bundle(value: Any, limits: Limits, printers: Printers) -> Optional[Bundle]:
    """Data and metadata of *value*; None when it has displayed itself.

    What a method of its raises is told on stderr, and the others are asked; but repr's own error is the caller's.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE and printers.are_plain(kind):
        return {"text/plain": repr(value)}, {}
    asked = _Asked(value)
    if declared.is_plotly(value):  # what it does to display itself looks for a browser
        data: Dict[str, Any] = {}
        metadata: Dict[str, Any] = {}
        asked.add(data, metadata, declared.PLOTLY, "the figure", lambda: declared.as_plotly(value))
        data["text/plain"] = printers.text(value)
        return data, metadata
    if asked.displays_itself():
        return None
    data, metadata = asked.mimebundle()
    if declared.is_altair(value) and not any("vegalite" in mime for mime in data):
        data.update(asked.guarded("the chart", lambda: declared.as_vegalite(value)) or {})
    for mime, method in _METHODS.items():
        printer = printers.find(mime, value)
        if printer is not None:
            asked.add(data, metadata, mime, "the printer for %s" % mime, partial(printer, value))
        elif mime not in data:
            asked.add_by_method(data, metadata, mime, method)
    if plots.is_figure(value) and "image/png" not in data:
        asked.add(data, metadata, "image/png", "the figure", lambda: plots.as_png(value))
    if plots.is_figure(value) and plots.CHART not in data:
        from .charts import as_chart  # late: most contexts show none

        asked.add(data, metadata, plots.CHART, "the chart", lambda: _quietly(as_chart, value))
    if tables.is_table(value) and tables.MIME not in data:
        asked.add(data, metadata, tables.MIME, "the table", lambda: _quietly(tables.as_table, value, limits))
    if "text/plain" not in data:
        data["text/plain"] = printers.text(value)
    return data, metadata


def _quietly(make: Callable[..., Any], *given: Any) -> Any:
    """What we read of a value beside what the user asked to see is nothing to warn the user of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*given)


class _Asked:
    """One object that is asked for what it looks like."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._kind = failures.name_of(value)
        self._has_methods = not isinstance(value, type) and self._get(_CANARY) is None

    def displays_itself(self) -> bool:
        method = self._method("_ipython_display_")
        if method is None:
            return False
        return self.guarded("_ipython_display_", lambda: [method()]) is not None

    def mimebundle(self) -> Bundle:
        method = self._method("_repr_mimebundle_")
        if method is None:
            return {}, {}
        answer = self.guarded("_repr_mimebundle_", lambda: method(include=None, exclude=None))
        data, metadata = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, {})
        if answer is not None and not (isinstance(data, dict) and isinstance(metadata, dict)):
            self._complain("_repr_mimebundle_", answer, "a dict")
            return {}, {}
        return dict(data or {}), dict(metadata or {})

    def add_by_method(self, data: Dict[str, Any], metadata: Dict[str, Any], mime: str, name: str) -> None:
        method = self._method(name)
        if method is not None:
            self.add(data, metadata, mime, name, method)

    def add(
        self, data: Dict[str, Any], metadata: Dict[str, Any], mime: str, name: str, make: Callable[[], Any]
    ) -> None:
        answer = self.guarded(name, make)
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict):
            answer, metadata[mime] = answer
        if answer is None:
            return
        wanted = (str, bytes) if mime in _BINARY else object if mime.endswith("json") else str
        if isinstance(answer, wanted):
            data[mime] = answer
        else:
            self._complain(name, answer, "text")

    def _method(self, name: str) -> Optional[Callable[..., Any]]:
        method = self._get(name) if self._has_methods else None
        return method if callable(method) else None

    def _get(self, name: str) -> Any:
        try:
            return getattr(self._value, name, None)
        except Exception:  # a __getattr__ of the user's: then it has no such method
            return None

    def guarded(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except NotImplementedError:
            return None
        except Exception as error:
            tell("%s of %s failed:\n%s" % (name, self._kind, failures.format_error(error, _TRACEBACK_LIMIT)))
            return None

    def _complain(self, name: str, answer: Any, wanted: str) -> None:
        tell("%s of %s returned %s, not %s\n" % (name, self._kind, failures.name_of(answer), wanted))


def tell(text: str) -> None:
    """To stderr, if there is one."""
    stream = sys.stderr or sys.__stderr__
    if stream is not None:
        stream.write(text)


def printed(body: Dict[str, Any]) -> None:
    """A result as plain text, where it can't be sent as what it is."""
    text = body.get("data", {}).get("text/plain")
    if isinstance(text, str):
        print(text)

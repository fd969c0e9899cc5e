"""What runs a language in a context's process, and where each is found.

The context (context.py) reads the orders, owns descriptors 0, 1 and 2, SIGINT, the order of the streams and every limit
on what is sent; an engine runs code. An engine's module is imported by the first context that needs it.
"""

import importlib
import socket
from typing import Any, Callable, Dict, NamedTuple, Optional, Protocol

Show = Callable[[Dict[str, Any]], None]


class Limits(NamedTuple):
    """What one cell may send; the caller may say otherwise for each (`limits` of an order).

    Bytes are those of a result's JSON, but `text_bytes`, which are characters of text/plain in UTF-8.
    """

    result_bytes: int = 10 * 1024 * 1024  # of one result; the largest of its MIME types are left out until it fits
    results: int = 1000  # of one cell; those beyond are counted, not sent
    text_bytes: int = 1024 * 1024  # text/plain is cut in its middle
    table_rows: int = 1000
    table_columns: int = 100
    value_bytes: int = 8_000  # of an error's message
    traceback_bytes: int = 32_000


class EngineMissing(Exception):
    """The language can't be had in this image; the text says why and what there is."""


class Engine(Protocol):
    """One living interpreter. An engine whose own process has died ends this one, with a status that says how."""

    about: Dict[str, str]  # {"language": …, "version": …}

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        """Run one cell; the answer is its end: ``{"kind": "ok" | "interrupted"}`` or ``{"kind": "error",
        "name": …, "value": …, "traceback": …}``, all texts.

        Descriptor 0 is the cell's stdin already, in this process; *stdin* is the same file once more (None: /dev/null)
        for an engine with a process of its own. *show* takes a result's body (``{"type": "result" | "display",
        "data": {mime: text or JSON}}``; `metadata`, `display_id`, `update` as needed), cuts it to the limits, and waits
        until what was written to descriptors 1 and 2 before was read. SIGINT to the process group is KeyboardInterrupt
        in here: let it pass, or answer ``{"kind": "interrupted"}``. Before and after it is ignored, which children
        inherit.
        """

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        """``{"matches": [text…], "start": n, "end": n}``: what may stand in ``code[start:end]``.

        Places are in characters.
        """

    def inspect(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        """``{"found": bool, "data": {mime: text}}``: what the name at *cursor* is, with *detail* 1 its source too."""

    def reseed(self, entropy: bytes) -> None:
        """Draw other random numbers from now on, but where the user has set a seed. Called between cells.

        An engine that can do so in the midst of a cell, in a signal's handler, has a `reseed_now` as well; and the
        address `twisters`, if the agent may do so itself while this process is frozen.
        """

    def idle(self, orders: socket.socket) -> None:
        """Let go on what runs between cells, until *orders* can be read; or return at once."""

    def close(self) -> None:
        """The agent has hung up: end what was started."""


# language → module and class; the class is called with the language. What is not here is a Jupyter kernel's.
_ENGINES = {
    "python": ("python_engine", "PythonEngine"),
    "bash": ("bash_engine", "BashEngine"),
    "javascript": ("javascript_engine", "JavaScriptEngine"),
}
_OTHERS = ("jupyter_engine", "JupyterEngine")


def open_engine(language: str) -> Engine:
    """The engine for *language*, ready to run. Raises EngineMissing."""
    module, name = _ENGINES.get(language, _OTHERS)
    found = importlib.import_module("." + module, __name__.rpartition(".")[0])
    engine: Engine = getattr(found, name)(language)
    return engine

"""A Jupyter kernel whose cells run in a sandbox of its own: the protocol here, the interpreter there.

The shell's loop waits for a thread that follows the cell, so the control thread can interrupt and shut down meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel
from traitlets import Integer, Unicode

from casemate import __version__
from casemate.errors import CasemateError
from casemate.integrations.jupyter.document import describe
from casemate.integrations.jupyter.held import Held, Ready, Wish, in_daemon_thread
from casemate.integrations.jupyter.outputs import data_of, error_of
from casemate.integrations.jupyter.sending import Sending
from casemate.sdk.code import Execution, SandboxDied

EXPRESSION_S = 10.0
T = TypeVar("T")


class CasemateKernel(Kernel):  # type: ignore[misc]  # ipykernel is half typed
    implementation = "casemate"
    implementation_version = __version__
    banner = "Casemate: cells run in a microVM"

    image = Unicode("python", help="What the sandbox starts from.").tag(config=True)
    language = Unicode("python", help="python, bash, javascript or jupyter:KERNEL.").tag(config=True)
    memory_mib = Integer(0, help="The guest's memory; 0 is the image's own.").tag(config=True)

    def __init__(self, **more: Any) -> None:
        self.msg_types = [*Kernel.msg_types, "comm_open", "comm_msg", "comm_close"]
        super().__init__(**more)
        about: dict[str, Any] = {"metadata": {}}
        describe(about, self.language, None)
        self.language_info = {"version": "3" if self.language == "python" else "", **about["metadata"]["language_info"]}
        self.language_info.setdefault("mimetype", "text/plain")
        self.language_info.setdefault("file_extension", ".txt")
        self._held = Held(Wish(self.image, self.language, self.memory_mib or None))
        self._lost: str | None = None  # why what came before is gone, for the next cell to say
        self._interrupted: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        super().start()
        self._held.coming()  # so that the first cell need not wait

    # ------------------------------------------------------------------- cells

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool = False,
        *,
        cell_meta: Any = None,
        cell_id: str | None = None,
    ) -> dict[str, Any]:
        count = self.execution_count
        if not silent and not store_history:
            self.execution_count -= 1
        parent = self.get_parent("shell")

        def send(kind: str, content: dict[str, Any]) -> None:
            if self.session:
                self.session.send(self.iopub_socket, kind, content, parent, ident=self._topic(kind))

        sending = Sending(send, count, silent=silent)
        self._loop, self._interrupted = asyncio.get_running_loop(), asyncio.Event()
        try:
            error = await self._executed(code, sending) if code.strip() else None
        finally:
            self._interrupted = None
        reply: dict[str, Any] = {"execution_count": count, "user_expressions": {}, "payload": []}
        if error is not None:
            send("error", error)
            return {"status": "error", **error, **reply}
        for name, expression in (user_expressions or {}).items():
            reply["user_expressions"][name] = await self._value_of(str(expression))
        return {"status": "ok", **reply}

    async def _executed(self, code: str, sending: Sending) -> dict[str, Any] | None:
        """The content of the error it ended with."""
        try:
            ready = await self._ready(sending)
        except CasemateError as error:
            self._held.let_go()
            return _told(error)
        if ready is None:
            return {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
        if self._lost is not None:
            sending.note(f"the sandbox has ended ({self._lost}): this is a fresh one, without earlier names and files")
            self._lost = None
        run = partial(
            ready.sandbox.run_code,
            code,
            context=ready.context,
            on_stdout=sending.stdout,
            on_stderr=sending.stderr,
            on_result=sending.result,
        )
        try:
            execution: Execution = await _apart(run)
        except CasemateError as error:
            sending.end()
            await self._find_out(ready, error)
            return _told(error)
        if isinstance(execution.end, SandboxDied):
            self._give_up(execution.end.code)
        if execution.error is not None and execution.error.name == "EOFError" and "input(" in code:
            sending.note("cells cannot ask for input here: input() finds the end of a file")
        sending.end(execution.left_out.results)
        failed = error_of(execution)
        return {name: failed[name] for name in ("ename", "evalue", "traceback")} if failed is not None else None

    async def _ready(self, sending: Sending) -> Ready | None:
        """None: interrupted while it was waited for."""
        assert self._interrupted is not None
        self._held.tell = sending.note
        coming = asyncio.ensure_future(asyncio.wrap_future(_shielded(self._held.coming())))
        waiting = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait((coming, waiting), return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else None
        finally:
            self._held.tell = lambda text: None
            coming.cancel()
            waiting.cancel()

    async def _find_out(self, ready: Ready, error: CasemateError) -> None:
        """Whether the sandbox is still there: an attached one goes with the daemon, and with our connection."""
        try:
            info = await _apart(ready.sandbox.refresh)
        except CasemateError:
            self._give_up(error.code)
        else:
            if info.state in ("terminating", "terminated"):
                self._give_up(error.code)

    def _give_up(self, reason: str) -> None:
        self._lost = reason
        self._held.let_go()

    async def _value_of(self, expression: str) -> dict[str, Any]:
        ready = self._held.now()
        try:
            if ready is None:
                raise CasemateError("there is no sandbox")
            run = partial(ready.sandbox.run_code, expression, EXPRESSION_S, context=ready.context)
            execution: Execution = await _apart(run)
        except CasemateError as error:
            return {"status": "error", **_told(error)}
        if (failed := error_of(execution)) is not None:
            return {"status": "error", **{name: failed[name] for name in ("ename", "evalue", "traceback")}}
        shown = [result for result in execution.results if result.type == "result"]
        return {"status": "ok", "data": data_of(shown[-1]) if shown else {}, "metadata": {}}

    # ------------------------------------------------------------ beside cells

    async def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:
        nothing = {"matches": [], "cursor_start": cursor_pos, "cursor_end": cursor_pos, "metadata": {}, "status": "ok"}
        ready = self._held.now()
        if ready is None:
            return nothing
        try:
            found = await _apart(partial(ready.sandbox.contexts.complete, code, cursor_pos, ready.context))
        except CasemateError as error:
            self.log.info("nothing to complete: %s", error)
            return nothing
        return {**nothing, "matches": list(found.matches), "cursor_start": found.start, "cursor_end": found.end}

    async def do_inspect(
        self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()
    ) -> dict[str, Any]:
        nothing = {"status": "ok", "found": False, "data": {}, "metadata": {}}
        ready = self._held.now()
        if ready is None:
            return nothing
        ask = partial(ready.sandbox.contexts.inspect, code, cursor_pos, ready.context, detail=detail_level)
        try:
            found = await _apart(ask)
        except CasemateError as error:
            self.log.info("nothing to inspect: %s", error)
            return nothing
        return {**nothing, "found": found.found, "data": dict(found.data)}

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        if self.language != "python":
            return {"status": "unknown"}
        from IPython.core.inputtransformer2 import TransformerManager

        status, indent = TransformerManager().check_complete(code)
        return {"status": status} if status != "incomplete" else {"status": status, "indent": " " * (indent or 0)}

    async def do_debug_request(self, msg: dict[str, Any]) -> dict[str, Any]:
        said = {"type": "response", "success": False, "message": "this kernel has no debugger", "body": {}}
        return {**said, "request_seq": msg.get("seq", 0), "command": msg.get("command", "")}

    @property
    def kernel_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super().kernel_info
        return {**info, "supported_features": []}

    async def comm_open(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """There are no widgets here: whoever opens a comm hears that it is closed."""
        if self.session:
            gone = {"comm_id": str(parent["content"].get("comm_id", "")), "data": {}}
            self.session.send(self.iopub_socket, "comm_close", gone, parent, ident=self._topic("comm_close"))

    async def comm_msg(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """To a comm that was never opened."""

    async def comm_close(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Of a comm that was never opened."""

    # ---------------------------------------------------------- in the control thread

    async def interrupt_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        waiting, loop = self._interrupted, self._loop
        if waiting is not None and loop is not None:
            loop.call_soon_threadsafe(waiting.set)
        ready = self._held.now()
        content: dict[str, Any] = {"status": "ok"}
        if ready is not None:
            try:
                await _apart(partial(ready.sandbox.contexts.interrupt, ready.context))
            except CasemateError as error:
                self.log.info("nothing to interrupt: %s", error)  # the cell's own end says what is wrong
        if self.session:
            self.session.send(stream, "interrupt_reply", content, parent, ident=ident)

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        """The sandbox is gone when the reply is sent; where the daemon does not answer it goes with our process."""
        with suppress(CasemateError, TimeoutError):
            await asyncio.wait_for(_apart(self._held.close), 3.0)
        return {"status": "ok", "restart": restart}

    def pre_handler_hook(self) -> None:
        """SIGINT stays ignored: interrupts are messages."""

    def post_handler_hook(self) -> None:
        """As before it."""


class CasemateKernelApp(IPKernelApp):  # type: ignore[misc]
    name = "casemate-kernel"
    kernel_class = CasemateKernel
    outstream_class = None  # nothing runs in here that could print
    classes = [CasemateKernel, *IPKernelApp.classes]

    def init_control(self, context: Any) -> None:
        super().init_control(context)
        self.shell_channel_thread = None  # no subshells: the guest's contexts run one cell at a time


def _told(error: CasemateError) -> dict[str, Any]:
    hint = getattr(error, "hint", None)
    lines = [f"{type(error).__name__}: {error}", *([f"hint: {hint}"] if hint and hint not in str(error) else [])]
    return {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}


async def _apart(act: Callable[[], T]) -> T:
    """In a thread, with the request that is being answered."""
    context = contextvars.copy_context()
    return await asyncio.wrap_future(in_daemon_thread(lambda: context.run(act)))


def _shielded(coming: Future[T]) -> Future[T]:
    """Another future for the same: who gives up waiting for it does not cancel it."""
    following: Future[T] = Future()

    def follow(done: Future[T]) -> None:
        if following.set_running_or_notify_cancel():
            error = done.exception()
            if error is not None:
                following.set_exception(error)
            else:
                following.set_result(done.result())

    coming.add_done_callback(follow)
    return following

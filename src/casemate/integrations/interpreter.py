"""What every agent framework is given: one interpreter in one sandbox, for as long as an agent works with it.

Every answer is for a model to read: code that fails is one, and so is what kept it from being run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread

from casemate.errors import CasemateError, NotFound, StateConflict
from casemate.integrations.answers import TEXT_BYTES, Part, parts_of
from casemate.sdk import Sandbox, SandboxDied

TIMEOUT_S = 120.0
READ_BYTES = 64 * 1024  # of a file, in one answer
ENTRIES = 1000  # of a folder
LOST = "[the sandbox has ended ({reason}): its files and variables are lost; the next call starts a new one]"

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Interpreter:
    """Runs code in a sandbox of its own, made at first use and gone with ``close``, the block, or this process.

    Variables and files stay from one call to the next. *timeout_s* bounds each call's code. *options* are those of
    ``Sandbox.create``. A *sandbox* that is given is used instead, and left. May be used from several threads.
    """

    def __init__(
        self,
        image: str = "python",
        *,
        timeout_s: float = TIMEOUT_S,
        sandbox: Sandbox | None = None,
        **options: Any,
    ) -> None:
        self._create = {"image": image, "attached": True, **options}
        self._timeout_s = timeout_s
        self._given = sandbox
        self._sandbox = sandbox
        self._making = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its sandbox, unless that was given; a call that comes later starts another one."""
        with self._making:
            ours = self._sandbox if self._given is None else None
            self._sandbox = self._given
        if ours is not None:
            try:
                ours.kill()
            except CasemateError as error:  # the daemon ends it with this process
                log.warning("sandbox %s: %s", ours.id, error)

    @property
    def sandbox(self) -> Sandbox:
        """Made now if there is none. Raises what creating one does."""
        with self._making:
            if self._sandbox is None:
                self._sandbox = Sandbox.create(**self._create)
            return self._sandbox

    def run(self, code: str) -> list[Part]:
        """What the code has shown: texts, and pictures among them."""

        def run(sandbox: Sandbox) -> list[Part]:
            execution = sandbox.run_code(code, self._timeout_s, max_output_bytes=TEXT_BYTES)
            if isinstance(execution.end, SandboxDied):
                self._forget(sandbox)
            return parts_of(execution)

        return self._answered(run)

    def write_file(self, path: str, text: str) -> list[Part]:
        return self._answered(lambda sandbox: [f"{path}: {sandbox.files.write(path, text)} bytes written"])

    def read_file(self, path: str) -> list[Part]:
        """Its first 64 KiB as text."""

        def read(sandbox: Sandbox) -> list[Part]:
            size = sandbox.files.stat(path, follow=True).size
            data = sandbox.files.read(path, length=READ_BYTES)
            cut = [f"[{len(data)} of {size} bytes]"] if size > len(data) else []
            return [data.decode(errors="replace") or "(empty)", *cut]

        return self._answered(read)

    def list_files(self, path: str = ".") -> list[Part]:
        def listed(sandbox: Sandbox) -> list[Part]:
            entries = sandbox.files.list(path)
            lines = [f"{entry.type:7} {entry.size:>12} {entry.name}" for entry in entries[:ENTRIES]]
            more = [f"[{len(entries) - ENTRIES} more entries are left out]"] if len(entries) > ENTRIES else []
            return ["\n".join([*lines, *more]) or "(empty)"]

        return self._answered(listed)

    async def apart(self, act: Callable[Concatenate[Interpreter, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """*act* of this in a thread: no event loop waits for it, or has to be the same one later.

        Cancelled, the code that runs is interrupted; its thread ends by itself.
        """
        try:
            return await anyio.to_thread.run_sync(lambda: act(self, *args, **kwargs), abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            threading.Thread(target=self._interrupt, daemon=True).start()
            raise

    def _interrupt(self) -> None:
        sandbox = self._sandbox
        if sandbox is not None:
            try:
                sandbox.contexts.interrupt("default")
            except CasemateError as error:
                log.warning("sandbox %s: %s", sandbox.id, error)

    def _answered(self, act: Callable[[Sandbox], list[Part]]) -> list[Part]:
        try:
            sandbox = self.sandbox
        except CasemateError as error:
            return [f"error ({error.code}): {error}"]
        try:
            return act(sandbox)
        except CasemateError as error:
            if (lost := self.forgotten(sandbox, error)) is not None:
                return [lost]
            return [f"error ({error.code}): {error}"]

    def forgotten(self, sandbox: Sandbox, error: CasemateError) -> str | None:
        """What a model has to know if *error* means that *sandbox* is no more; there is another one from now on."""
        reason = self._reason_of_end(sandbox, error)
        if reason is None:
            return None
        self._forget(sandbox)
        return LOST.format(reason=reason)

    def _reason_of_end(self, sandbox: Sandbox, error: CasemateError) -> str | None:
        """Why the sandbox is no more; None if it lives, or that can't be told."""
        if not isinstance(error, NotFound | StateConflict):
            return None
        try:
            info = sandbox.refresh()
        except NotFound as gone:
            return gone.message
        except CasemateError:
            return None
        if info.state not in ("terminating", "terminated"):
            return None
        return info.state_reason.code if info.state_reason is not None else info.state

    def _forget(self, sandbox: Sandbox) -> None:
        with self._making:
            if self._sandbox is sandbox and self._given is None:
                self._sandbox = None


RUN = (
    "Run Python code in a sandbox: a machine of its own without network. Variables, files and imports stay from one "
    "call to the next. What is printed, the value of the last expression and figures come back. numpy, pandas and "
    "matplotlib are there."
)
WRITE = "Write a text file in the sandbox; folders above it are made."
READ = "Read the beginning of a text file in the sandbox."
LIST = "List a folder of the sandbox."

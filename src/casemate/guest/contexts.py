"""The contexts of this sandbox by id, and the way of a cell into one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from casemate.errors import CasemateError, InvalidSpec, NotFound, StateConflict
from casemate.guest.cells import Cell, Cells
from casemate.guest.context import Context
from casemate.guest.zygote import Job, Loop, Zygote

DEFAULT = "default"
LANGUAGE = "python"
CONTEXTS_AT_MOST = 32
QUEUE_LIMIT = 64  # cells that wait for one context
INPUT_LIMIT = 16 << 20  # code or stdin of one cell
INPUT_HELD = 64 << 20  # of all that wait, in the agent's memory
INPUT_UNCOUNTED = 16 << 10


class Contexts:
    """Owns contexts and cells."""

    def __init__(self, loop: Loop, zygote: Zygote) -> None:
        self._loop, self._zygote = loop, zygote
        self._contexts: dict[str, Context] = {}
        self.table = Cells()

    def create(
        self,
        context_id: str,
        language: str,
        job: Job,
        created: Callable[[Context], None],
        failed: Callable[[CasemateError], None],
    ) -> None:
        """A new context; *created* is called when it is ready for cells, or *failed*, and then it is not there.

        Raises StateConflict for an id in use or too many contexts.
        """
        if context_id in self._contexts:
            raise StateConflict(f"there is a context {context_id} already")
        context = self._add(context_id, language, job)

        def on_failed(error: CasemateError) -> None:
            if self._contexts.get(context_id) is context:
                del self._contexts[context_id]
            failed(error)

        context.start(lambda: created(context), on_failed)

    def start_default(self, job: Job, done: Callable[[], None]) -> None:
        """Have the default context wait for its first cell, as *job* would have it; *done* is called in any case."""

        def failed(error: CasemateError) -> None:
            print(f"the default context does not wait warm: {error}", file=sys.stderr)
            done()

        self.create(DEFAULT, LANGUAGE, job, lambda _context: done(), failed)

    def find(self, context_id: str) -> Context:
        """Raises NotFound."""
        found = self._contexts.get(context_id)
        if found is None:
            raise NotFound(f"there is no context {context_id!r}", hint="create it first; `default` is always there")
        return found

    def for_cell(self, context_id: str, language: str | None, job: Callable[[], Job]) -> Context:
        """The context a new cell is to run in; the default one begins, or begins anew, with *job* and *language*.

        Raises NotFound; StateConflict when too many cells wait for it, or when it speaks another language.
        """
        if context_id != DEFAULT:
            context = self.find(context_id)
        elif DEFAULT not in self._contexts:
            context = self._add(DEFAULT, language or LANGUAGE, job())
        else:
            context = self._contexts[DEFAULT]
            if context.is_unused and not context.adopt(job(), language or LANGUAGE):
                self.remove(DEFAULT)
                context = self._add(DEFAULT, language or LANGUAGE, job())
            if not context.has_process and not context.cells:
                context.job = job()
        if language not in (None, context.language):
            raise StateConflict(
                f"the context {context_id} speaks {context.language}, not {language[:40] if language else ''}",
                hint="create a context of that language",
            )
        _check_queue(context)
        return context

    def run(self, cell: Cell) -> None:
        """Run *cell*, which has its code now, in its context. Raises NotFound, StateConflict: it is not to be."""
        context = self.find(cell.context_id)
        _check_queue(context)
        context.run(cell)

    def feed(self, coming: bytearray, more: bytes) -> None:
        """Add *more* to the code or stdin of a cell. Raises InvalidSpec, StateConflict: it is too much."""
        if len(coming) + len(more) > INPUT_LIMIT:
            raise InvalidSpec(f"code, or stdin, is over {INPUT_LIMIT} bytes", hint="write it to a file and use that")
        if len(coming) > INPUT_UNCOUNTED and self.table.input_held() + len(more) > INPUT_HELD:
            raise StateConflict(
                f"the cells that wait hold {INPUT_HELD} bytes of code and stdin", hint="wait for some to end"
            )
        coming += more

    def all(self) -> list[Context]:
        return list(self._contexts.values())

    def remove(self, context_id: str) -> None:
        """End it and its cells. Raises NotFound."""
        context = self.find(context_id)
        del self._contexts[context_id]
        context.end("the context was removed")

    def interrupt(self, cell: Cell) -> None:
        """End *cell*, if it has not ended: see `Context.interrupt`."""
        context = self._contexts.get(cell.context_id)
        if context is not None and cell.ended is None:
            context.interrupt(cell)

    def begin_anew(self) -> None:
        """Another user's from now on: living contexts draw fresh randomness, and what was run before is nobody's."""
        self.table.forget_ended()
        for context in self._contexts.values():
            context.reseed()

    def begin_as_copy(self) -> None:
        """In a copy of the sandbox: what runs goes on and what has ended can be read, all by new ids; what is drawn
        from now on is this copy's own.
        """
        self.table.rename_all()
        for context in self._contexts.values():
            context.reseed(at_once=True)

    @property
    def cells(self) -> int:
        """How many run or wait to."""
        return sum(context.cells for context in self._contexts.values())

    def stop(self) -> None:
        for context_id in tuple(self._contexts):
            self.remove(context_id)

    def _add(self, context_id: str, language: str, job: Job) -> Context:
        if len(self._contexts) >= CONTEXTS_AT_MOST:
            raise StateConflict(f"{CONTEXTS_AT_MOST} contexts are in this sandbox", hint="remove one first")
        context = Context(self._loop, self._zygote, context_id, language, job, self._on_ended)
        self._contexts[context_id] = context
        return context

    def _on_ended(self, cell: Cell) -> None:
        if cell.order.asks is None:
            self.table.keep(cell)
        else:
            self.table.discard(cell)


def _check_queue(context: Context) -> None:
    if context.queued >= QUEUE_LIMIT:
        raise StateConflict(
            f"too many cells wait: {context.queued} for the context {context.context_id}",
            hint="wait for some to end, or use another context",
        )

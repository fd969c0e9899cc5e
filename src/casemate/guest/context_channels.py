"""Channels of kind context: create, list, restart, interrupt, remove."""

from __future__ import annotations

from typing import Any

from casemate.errors import CasemateError, InvalidSpec
from casemate.guest.cell_channels import identity
from casemate.guest.context import Context
from casemate.guest.contexts import LANGUAGE, Contexts
from casemate.guest.conversation import Conversation, environment, optional_text, text


class ContextChannel(Conversation):
    """One act on one context; accepted when it is done."""

    _closed = False

    def begin(self, params: dict[str, Any]) -> None:
        op = text(params, "op")
        contexts = self.server.prepared_contexts()
        if op == "list":
            self._done({"contexts": [context.info() for context in contexts.all()]})
            return
        if op not in ("create", "restart", "interrupt", "remove"):
            raise InvalidSpec(f"context has no op {op!r}")
        context_id = identity(params, "context_id")
        if op == "create":
            self._create(contexts, context_id, params)
        elif op == "restart":
            context = contexts.find(context_id)
            context.restart(lambda: self._made(context), self._failed)
        elif op == "interrupt":
            contexts.find(context_id).interrupt()
            self._done({})
        else:
            contexts.remove(context_id)
            self._done({})

    def on_closed(self, lost: bool) -> None:
        self._closed = True

    def _create(self, contexts: Contexts, context_id: str, params: dict[str, Any]) -> None:
        job = self.server.surroundings.job(
            (), environment(params), optional_text(params, "cwd"), optional_text(params, "user")
        )
        contexts.create(context_id, text(params, "language", LANGUAGE), job, self._made, self._failed)

    def _made(self, context: Context) -> None:
        self._done({"context": context.info()})

    def _failed(self, error: CasemateError) -> None:
        if not self._closed:
            self.deny(error)

    def _done(self, body: dict[str, Any]) -> None:
        if not self._closed:
            self.accept(body)
            self.finish()

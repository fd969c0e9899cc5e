"""What an agent says when it refuses, as the errors that it stands for."""

from __future__ import annotations

import re

from casemate import errors, wire
from casemate.sandbox.parse import unicode

_ERRNO = re.compile(r"(E[A-Z0-9]{1,18}): ")
_DENIALS: dict[str, type[errors.CasemateError]] = {
    "archive-refused": errors.ArchiveRefused,
    "exec-refused": errors.ExecRefused,
    "file-refused": errors.FileRefused,
    "port-refused": errors.PortRefused,
    "not-found": errors.NotFound,
    "not-served": errors.NotSupported,
    "not-supported": errors.NotSupported,
    "invalid-spec": errors.InvalidSpec,
    "state-conflict": errors.StateConflict,
}


def denial(event: wire.Denied) -> errors.CasemateError:
    kind = _DENIALS.get(event.code, errors.RequestError)
    message = str(event.body.get("message") or f"the guest refused: {event.code}")
    named = {k: v for k, v in event.body.items() if k in ("errno", "code", "path") and isinstance(v, str)}
    evidence = {name: unicode(said) for name, said in named.items()}
    return kind(unicode(message[:2000]), hint=unicode(event.hint[:2000]), evidence=evidence)


def giving_up(event: wire.Reset) -> errors.CasemateError:
    """A refusal that came after the agent had accepted, such as a full disk; its hint is the message."""
    kind, hint, code = _DENIALS.get(event.code), unicode(event.hint[:2000]), unicode(event.code[:80])
    if kind is not None:
        evidence = {}
        if named := _ERRNO.match(hint):  # files begin with the kernel's reason
            evidence, hint = {"errno": named[1]}, hint[named.end() :]
        return kind(hint or f"the guest refused: {code}", evidence=evidence)
    return errors.GuestError(f"the agent gave up: {code}", hint=hint)

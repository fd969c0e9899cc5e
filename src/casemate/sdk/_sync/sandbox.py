# Generated from _async/sandbox.py by tools/generate_sync.py; change that and run it.
"""What a user holds: one microVM, from create to kill."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, Self, overload
from urllib.parse import quote
from uuid import uuid4

from casemate.errors import InvalidSpec, StateConflict
from casemate.sdk._sync.client import ANSWER_S, Client
from casemate.sdk._sync.code import Code, CodeCell, Contexts, Shower, Sink, Sinks, id_of, text_of
from casemate.sdk._sync.commands import Commands
from casemate.sdk._sync.files import Files
from casemate.sdk._sync.ports import Ports
from casemate.sdk.code import Context, Execution
from casemate.sdk.results import SandboxInfo, SuspendedFacts
from casemate.sdk.stats import SandboxStats
from casemate.sdk.streams import MAX_OUTPUT_BYTES

STORE_LIMIT_S = 180.0  # how long a suspend or a resume may take: all that a large guest wrote goes to a disk
BUILD_LIMIT_S = 600.0  # how long a plain answer may take that has to wait for a snapshot to be built
Progress = Callable[[str, str, float | None], object]


class Sandbox:
    """A microVM of its own for code nobody has reviewed. As a context manager it is killed at the end."""

    def __init__(self, client: Client, info: SandboxInfo, held: ExitStack, *, own: bool) -> None:
        """Use ``create`` or ``connect``. *own*: nobody else uses the client, which *held* closes."""
        self._client = client
        self._own = own
        self._info = info
        self._held = held
        self._path = f"/v1/sandboxes/{info.id}"
        self.commands = Commands(client, self._path)
        self.files = Files(client, self._path)
        self.ports = Ports(client, self._path)
        self.contexts = Contexts(client, self._path)
        self._code = Code(client, self._path)

    @classmethod
    def create(
        cls,
        image: str = "python",
        *,
        name: str | None = None,
        memory_mib: int | None = None,
        vcpus: int | None = None,
        disk_mib: int | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        labels: Mapping[str, str] | None = None,
        max_duration_s: float | None = None,
        idle_timeout_s: float | None = 900,
        on_idle: Literal["kill", "keep", "suspend"] = "kill",
        park_after_s: float | None = 5,
        auto_resume: bool = True,
        network: str = "none",
        attached: bool = False,
        create_timeout_s: float = 60,
        build: bool = True,
        progress: Progress | None = None,
        url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
    ) -> Self:
        """A fresh, running sandbox, restored from the image's snapshot.

        With nothing to do for *park_after_s* it is frozen until the next call, for *idle_timeout_s* it is killed or
        suspended, as *on_idle* says; None is never. With *auto_resume* the next call resumes a suspended one.
        *attached*: it lives no longer than this process, whatever becomes of it. Neither an unset *url* nor
        CASEMATE_URL: the daemon is this user's own, started when there is none. A *client* is shared, not closed.
        The first use of a shape builds its snapshot, unless *build* is false: that takes some 10 s, of which
        *progress* is told (step, message, fraction or None); *create_timeout_s* begins after it.
        Raises NotFound for the image, SnapshotMissing, InvalidSpec, NotSupported, CapacityError, HostError, VmmError,
        GuestError.
        """
        body = {
            "image": image,
            "name": name,
            "memory_mib": memory_mib,
            "vcpus": vcpus,
            "disk_mib": disk_mib,
            "env": dict(env or {}),
            "user": user,
            "cwd": cwd,
            "labels": dict(labels or {}),
            "max_duration_s": max_duration_s,
            "idle_timeout_s": idle_timeout_s,
            "on_idle": on_idle,
            "park_after_s": park_after_s,
            "auto_resume": auto_resume,
            "network": network,
            "attached": attached,
            "create_timeout_s": create_timeout_s,
            "build": build,
            "progress": progress is not None,
        }
        answer_s = create_timeout_s + ANSWER_S + (BUILD_LIMIT_S if build else 0)
        with ExitStack() as held:
            spoken = _one_of(held, client, url, api_key)
            lines = partial(spoken.lines, "POST", "/v1/sandboxes", body=body, answer_s=answer_s)
            if attached:
                found = _made(held.enter_context(lines()), progress)
            elif progress is not None:
                with lines() as events:
                    found = _made(events, progress)
            else:
                found = spoken.call(
                    "POST", "/v1/sandboxes", body=body, answer_s=answer_s, again=True, idempotency_key=uuid4().hex
                )
            return cls(spoken, SandboxInfo.from_json(found), held.pop_all(), own=client is None)
        raise AssertionError("unreachable")

    @classmethod
    def connect(
        cls, ref: str, *, url: str | None = None, api_key: str | None = None, client: Client | None = None
    ) -> Self:
        """The live sandbox with this id, unique prefix of an id, or name. Raises NotFound."""
        with ExitStack() as held:
            spoken = _one_of(held, client, url, api_key)
            found = spoken.call("GET", f"/v1/sandboxes/{quote(ref, safe='')}")
            return cls(spoken, SandboxInfo.from_json(found), held.pop_all(), own=client is None)
        raise AssertionError("unreachable")

    @classmethod
    def list(
        cls,
        *,
        all: bool = False,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
    ) -> list[SandboxInfo]:
        """The live sandboxes, oldest first, with *all* also those that ended within the last day.

        *labels*: only those that have all of these.
        """
        wanted = [("label", f"{name}={value}") for name, value in (labels or {}).items()]
        with ExitStack() as held:
            spoken = _one_of(held, client, url, api_key)
            params = [*wanted, ("all", "1")] if all else wanted
            found = spoken.pages("/v1/sandboxes", "sandboxes", params, limit)
            return [SandboxInfo.from_json(body) for body in found]
        raise AssertionError("unreachable")

    @property
    def id(self) -> str:
        return self._info.id

    @property
    def info(self) -> SandboxInfo:
        """As of the last answer about it; ``refresh`` asks."""
        return self._info

    def refresh(self) -> SandboxInfo:
        """Ask the daemon how it is now. Raises NotFound a day after its end."""
        self._info = SandboxInfo.from_json(self._client.call("GET", self._path))
        return self._info

    def stats(self) -> SandboxStats:
        """What it takes now. Does not count as use. Raises StateConflict or NotFound unless it is running."""
        return SandboxStats.from_json(self._client.call("GET", f"{self._path}/stats"))

    def suspend(self) -> SuspendedFacts:
        """Store its memory and disk as they are now and give the host's memory back. Programs in it stand still.

        Raises StateConflict for one that is neither running nor suspended, HostFull where there is no room; it runs on
        then. Suspending what is suspended is no error.
        """
        info = self._lives("suspend", {}, STORE_LIMIT_S)
        if info.suspended is None:
            raise StateConflict(f"sandbox {info.id} is {info.state} by now")
        return info.suspended

    def resume(self, *, cold: bool = False) -> SandboxInfo:
        """Let it go on where it stood still; most calls do that by themselves.

        *cold*: boot it from its disk instead: programs and all that was in memory are lost.
        Raises HostError where its memory cannot be restored any more, HostFull; it stays suspended then.
        """
        return self._lives("resume", {"cold": cold}, STORE_LIMIT_S)

    def keep_alive(self, for_s: float) -> SandboxInfo:
        """For so long it is not idle, whatever it does: neither parked nor suspended nor killed for that."""
        return self._lives("keep-alive", {"for_s": for_s}, ANSWER_S)

    def fork(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None, progress: Progress | None = None
    ) -> builtins.list[Self]:
        """*count* running copies (1 to 64) of it as it is at this moment: all of them, or none.

        It stands still while its memory is saved, and goes on as before. Each copy has its variables, files and
        processes, and another id, host name and randomness; no name. *labels* beside its own. They are sandboxes like
        any other: each is killed by its own ``kill`` or at the end of its own block. *progress* as for create.
        Raises InvalidSpec for the count, StateConflict unless it runs or may be resumed, HostFull, VmmError,
        GuestError.
        """
        body = {"count": count, "labels": None if labels is None else dict(labels), "progress": progress is not None}
        path = f"{self._path}/fork"
        if progress is not None:
            with self._client.lines("POST", path, body=body, answer_s=STORE_LIMIT_S) as events:
                found = _made(events, progress)
        else:
            found = self._client.call(
                "POST", path, body=body, answer_s=STORE_LIMIT_S, again=True, idempotency_key=uuid4().hex
            )
        return [self._copy(body) for body in found["sandboxes"]]

    def _copy(self, found: Mapping[str, Any]) -> Self:
        with ExitStack() as held:
            client = held.enter_context(self._client.another()) if self._own else self._client
            return type(self)(client, SandboxInfo.from_json(found), held.pop_all(), own=self._own)
        raise AssertionError("unreachable")

    def snapshot(self, name: str, tag: str | None = None) -> dict[str, Any]:
        """Keep it as it is at this moment as the next version of image *name*, which may be a new one.

        ``create`` takes it as ``name``, ``name@version`` or ``name:tag``, also tomorrow; what runs here goes on there.
        The image is its tenant's alone and holds all that memory and disk hold, secrets too. The answer is the
        version, with ``pause_ms`` (it stood still), ``frozen_ms`` (its programs did) and ``took_ms``.
        Raises InvalidSpec for name or tag, StateConflict unless it runs or may be resumed, HostFull, VmmError,
        GuestError.
        """
        body, key = {"name": name, "tag": tag}, uuid4().hex
        path, limit_s = f"{self._path}/snapshot", STORE_LIMIT_S
        return self._client.call("POST", path, body=body, answer_s=limit_s, again=True, idempotency_key=key)

    def _lives(self, act: str, body: Mapping[str, Any], answer_s: float) -> SandboxInfo:
        path, key = f"{self._path}/{act}", uuid4().hex
        found = self._client.call("POST", path, body=body, answer_s=answer_s, again=True, idempotency_key=key)
        self._info = SandboxInfo.from_json(found)
        return self._info

    @overload
    def run_code(
        self,
        code: str,
        timeout_s: float | None = None,
        *,
        context: Context | str | None = None,
        language: str | None = None,
        grace_s: float | None = None,
        stdin: str | bytes | None = None,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        on_result: Shower | None = None,
        detach: Literal[False] = False,
        limits: Mapping[str, int] | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Execution: ...

    @overload
    def run_code(
        self,
        code: str,
        timeout_s: float | None = None,
        *,
        context: Context | str | None = None,
        language: str | None = None,
        grace_s: float | None = None,
        stdin: str | bytes | None = None,
        detach: Literal[True],
        limits: Mapping[str, int] | None = None,
        user: str | None = None,
    ) -> CodeCell: ...

    def run_code(
        self,
        code: str,
        timeout_s: float | None = None,
        *,
        context: Context | str | None = None,
        language: str | None = None,
        grace_s: float | None = None,
        stdin: str | bytes | None = None,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        on_result: Shower | None = None,
        detach: bool = False,
        limits: Mapping[str, int] | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Execution | CodeCell:
        """Run code in a context, whose names stay from one call to the next: the default one, which speaks Python.

        With *language* instead of *context*: in one that is made for that language once. After *timeout_s* it is
        interrupted, and *grace_s* later its context ended. *on_stdout* and *on_stderr* get each piece of bytes as it
        comes, *on_result* each result. *detach*: return at once; it goes on, also without this process. *limits*:
        ``result_bytes``, ``results``, ``text_bytes``, ``table_rows``, ``table_columns``.
        Code that fails is a result: ``end`` and ``error``. Raises NotFound for a context, StateConflict when too many
        cells wait for it, NotSupported for a language, GuestError.
        """
        if context is not None and language is not None:
            raise InvalidSpec("a context has its language already", hint="give context or language, not both")
        body = {
            "code": code,
            "context": self.contexts.of_language(language) if language is not None else id_of(context or "default"),
            "timeout_s": timeout_s,
            "grace_s": grace_s,
            "stdin": text_of(stdin),
            "limits": dict(limits) if limits is not None else None,
            "user": user,
        }
        if detach:
            return self._code.detach(body)
        return self._code.run(body, Sinks(on_stdout, on_stderr, on_result, max_output_bytes))

    def join_code(
        self,
        cell_id: str,
        offset: int = 0,
        *,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        on_result: Shower | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Execution:
        """Follow a detached cell from *offset* of its log on, or from where what is still held begins, to its end.

        Leaving changes nothing for it. Raises NotFound, RequestError for an offset past the end.
        """
        return self._code.join(cell_id, offset, Sinks(on_stdout, on_stderr, on_result, max_output_bytes))

    @contextmanager
    def logs(self, source: str = "console", *, follow: bool = False) -> Iterator[Iterator[bytes]]:
        """What its console said last, 64 KiB at most, in pieces; *source* ``agent``: the agent's lines only.

        With *follow* also what it says from now on, until it ends.
        """
        params = {"source": source} | ({"follow": "1"} if follow else {})
        answer_s = None if follow else ANSWER_S  # a console may say nothing for days
        with self._client.stream("GET", f"{self._path}/logs", params=params, answer_s=answer_s) as pieces:
            yield pieces

    def kill(self) -> None:
        """End it now, with everything in it; ending what has ended is no error."""
        try:
            self._info = SandboxInfo.from_json(self._client.call("DELETE", self._path, again=True))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of it without killing it; an attached one is killed by that."""
        self._held.close()
        if self._own:  # a call after the first of these has opened it again
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _made(events: Iterator[dict[str, Any]], progress: Progress | None) -> dict[str, Any]:
    """The sandbox that a stream of news ends with, or begins with where it goes on as long as the sandbox lives."""
    for event in events:
        if event.get("event") != "progress":
            return event
        if progress is not None:
            progress(event["step"], event["message"], event.get("fraction"))
    raise AssertionError("a stream of events ends with one or raises")


def _one_of(held: ExitStack, client: Client | None, url: str | None, api_key: str | None) -> Client:
    """The client we were given, or a new one that *held* closes."""
    if client is not None:
        return client
    return held.enter_context(Client(url, api_key=api_key))

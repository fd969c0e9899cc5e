"""smolagents: an executor whose code runs in a microVM. The extra ``casemate[smolagents]``.

    with CasemateExecutor() as executor, CodeAgent(tools=[], model=model, executor=executor) as agent:
        agent.run("…")

The agent's tools are sent into the sandbox as source and run there: what they need has to be in its image, and there is
no network. Nothing of what comes back is unpickled, nor are pictures that a guest has made opened here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self

from smolagents import AgentLogger, LogLevel, Tool
from smolagents.local_python_executor import CodeOutput
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.serialization import SafeSerializer
from smolagents.utils import AgentError

from casemate.errors import CasemateError
from casemate.integrations.answers import TEXT_BYTES, how, parts_of, text_of
from casemate.integrations.interpreter import TIMEOUT_S, Interpreter
from casemate.sdk import (
    CodeEnd,
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    Execution,
    Interrupted,
    Raised,
    Sandbox,
    SandboxDied,
)

PREFIX = "safe:"
DEPTH = 50
MISSING = """
def _missing(names):
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            if find_spec(name.replace("-", "_")) is None:
                yield name
print(*_missing({}), sep=", ")
"""
PLAIN = {"bytes", "set", "tuple", "complex", "frozenset", "dict_with_complex_keys", "datetime", "date", "time"}
PLAIN |= {"timedelta", "Decimal", "dataclass"}  # what its serializer makes of JSON here; the rest stays JSON


class CasemateExecutor(RemotePythonExecutor):  # type: ignore[misc]
    """One sandbox, made at first use. *timeout_s* bounds each step, *options* are those of ``Sandbox.create``.

    Where its interpreter or the sandbox is lost, the next step has the agent's tools and variables again.
    """

    def __init__(
        self,
        additional_imports: list[str] | None = None,
        logger: Any = None,
        *,
        image: str = "python",
        timeout_s: float = TIMEOUT_S,
        sandbox: Sandbox | None = None,
        **options: Any,
    ) -> None:
        super().__init__(additional_imports or [], logger or AgentLogger(level=LogLevel.ERROR), allow_pickle=False)
        self._interpreter = Interpreter(image, timeout_s=timeout_s, sandbox=sandbox, **options)
        self._timeout_s = timeout_s
        self._tools: dict[str, Tool] = {}
        self._variables: dict[str, Any] = {}
        self._is_lost = False  # what was sent is not there any more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """End the sandbox; an agent that is closed calls this, too."""
        self._interpreter.close()
        self._is_lost = True

    def send_variables(self, variables: dict[str, Any]) -> None:
        self._variables = dict(variables)
        self._send(lambda: RemotePythonExecutor.send_variables(self, variables))

    def send_tools(self, tools: dict[str, Tool]) -> None:
        self._tools = dict(tools)
        self._send(lambda: RemotePythonExecutor.send_tools(self, tools))

    def _send(self, act: Callable[[], None]) -> None:
        """What can't be sent because the interpreter is lost is sent to the next one, before its first step."""
        if self._is_lost:
            return
        try:
            act()
        except AgentError:
            if not self._is_lost:
                raise

    def __call__(self, code_action: str) -> CodeOutput:
        if self._is_lost:
            super().send_variables(self._variables)
            super().send_tools(self._tools)
            self._is_lost = False
        return self.run_code_raise_errors(code_action)

    def _patch_final_answer_with_exception(self, final_answer_tool: Tool) -> None:
        # Its tools are sent at each run of an agent, and what is wrapped twice has source code that can't run.
        if not hasattr(final_answer_tool, "_forward"):
            super()._patch_final_answer_with_exception(final_answer_tool)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """Only looks whether they are there: a sandbox has no network to install anything from."""
        wanted = [name.partition("==")[0] for name in additional_imports]
        missing = self._run(MISSING.format(wanted)).logs.stdout.strip() if wanted else ""
        if missing:
            raise self._failed(f"the sandbox's image has no {missing}: use one that has, or do without")
        return additional_imports

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        execution = self._run(code)
        end = execution.end
        if isinstance(end, Raised) and end.name == self.FINAL_ANSWER_EXCEPTION:
            try:
                answer = _answer_of(end.value)
            except ValueError as error:
                raise self._failed(f"the final answer {error}") from error
            return CodeOutput(output=answer, logs=execution.logs.stdout, is_final_answer=True)
        if not execution.ok:
            raise self._failed(f"{execution.logs.stdout}\n{execution.logs.stderr}\n{how(end)}".strip())
        shown = text_of(parts_of(execution))
        return CodeOutput(output=execution.text, logs=shown, is_final_answer=False)

    def _run(self, code: str) -> Execution:
        try:
            sandbox = self._interpreter.sandbox
        except CasemateError as error:
            raise self._failed(f"error ({error.code}): {error}") from error
        try:
            execution = sandbox.run_code(code, self._timeout_s, max_output_bytes=TEXT_BYTES)
        except CasemateError as error:
            lost = self._interpreter.forgotten(sandbox, error)
            self._is_lost = self._is_lost or lost is not None
            raise self._failed(lost or f"error ({error.code}): {error}") from error
        self._is_lost = self._is_lost or _loses(execution.end)
        if isinstance(execution.end, SandboxDied):
            self._interpreter.close()
        return execution

    def _failed(self, message: str) -> AgentError:
        return AgentError(message, self.logger)


def _loses(end: CodeEnd) -> bool:
    """Whether its interpreter's names are gone."""
    match end:
        case CodeTimedOut(state_kept=kept) | Interrupted(state_kept=kept):
            return not kept
        case _:
            return isinstance(end, CodeOutOfMemory | ContextDied | SandboxDied)


def _answer_of(value: str) -> Any:
    """What the code has answered; it is a guest's, that may mean harm. Raises ValueError for what is no such answer."""
    if not value.startswith(PREFIX):
        raise ValueError("is no JSON")
    try:
        return SafeSerializer.from_json_safe(_harmless(json.loads(value[len(PREFIX) :])))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        # It comes as an exception's text, which is cut after 8000 bytes
        raise ValueError("is no JSON, or longer than 8000 characters: put what is long in a file") from error


def _harmless(body: Any, depth: int = DEPTH) -> Any:
    """Without what makes the serializer open a picture, or an array of a type that a guest names."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(body, list):
        return [_harmless(one, depth - 1) for one in body]
    if not isinstance(body, dict):
        return body
    kind = body.get("__type__")
    if kind == "ndarray":
        return _harmless(body.get("data"), depth - 1)
    if kind is not None and kind not in PLAIN:
        body = {"type" if key == "__type__" else key: value for key, value in body.items()}
    return {key: _harmless(value, depth - 1) for key, value in body.items()}

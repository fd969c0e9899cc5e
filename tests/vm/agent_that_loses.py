"""For test_vm_frameworks: an agent of smolagents that runs again, and loses its interpreter and its sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smolagents import AgentLogger, ChatMessage, CodeAgent, LogLevel, MessageRole, Model, tool

from casemate.integrations.smolagents import CasemateExecutor
from casemate.sdk import Sandbox


@tool
def double(number: int) -> int:
    """Twice a number.

    Args:
        number: the number.
    """
    return 2 * number


def kill() -> None:
    (sandbox,) = Sandbox.list()
    Sandbox.connect(sandbox.id).kill()


def steps() -> Iterator[str]:
    yield "x = 1\nfinal_answer(double(x))"
    yield "final_answer(double(x + 1))"  # the second run, which has what the first had
    yield "import os\nos._exit(1)"
    yield "final_answer(double(base))"  # tools and variables are there again
    yield "final_answer(double(base))"  # after a loss between two runs: it begins as if nothing were
    kill()
    yield "x = 1"  # lost in a run: said once
    yield "final_answer(double(base))"


class Script(Model):
    def __init__(self) -> None:
        super().__init__()
        self._steps = steps()

    def generate(self, messages: Any, **_: Any) -> ChatMessage:
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"<code>\n{next(self._steps)}\n</code>")


def main() -> None:
    with CasemateExecutor(logger=AgentLogger(LogLevel.OFF)) as executor:
        agent = CodeAgent(tools=[double], model=Script(), executor=executor, verbosity_level=LogLevel.OFF)
        print(agent.run("one"))
        print(agent.run("two", reset=False))
        print(agent.run("three", additional_args={"base": 3}))
        kill()
        print(agent.run("four", additional_args={"base": 4}))
        print(agent.run("five", additional_args={"base": 5}))
        print(*[str(step.error.message)[:24] for step in agent.memory.steps if getattr(step, "error", None)])


if __name__ == "__main__":
    main()

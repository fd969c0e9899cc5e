"""A CodeAgent of smolagents whose code runs in a microVM.

    pip install 'casemate[smolagents]' && python examples/agent_smolagents.py

The model is a script, so that it needs no account; give CodeAgent a real one.
"""

from __future__ import annotations

from typing import Any

from smolagents import ChatMessage, CodeAgent, MessageRole, Model

from casemate.integrations.smolagents import CasemateExecutor

STEPS = [
    "numbers = [n for n in range(2, 30) if all(n % d for d in range(2, n))]\nprint(len(numbers))",
    "final_answer({'sum': sum(numbers), 'last': max(numbers)})",
]


class Script(Model):
    def __init__(self) -> None:
        super().__init__()
        self._steps = iter(STEPS)

    def generate(self, messages: Any, **_: Any) -> ChatMessage:
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: so.\n<code>\n{next(self._steps)}\n</code>")


def main() -> None:
    with CasemateExecutor() as executor:
        agent = CodeAgent(tools=[], model=Script(), executor=executor, verbosity_level=0)
        print(agent.run("Which sum have the primes below 30, and which is the last of them?"))


if __name__ == "__main__":
    main()

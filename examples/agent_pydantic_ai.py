"""An agent of pydantic-ai whose code runs in a microVM.

    pip install 'casemate[pydantic-ai]' && python examples/agent_pydantic_ai.py

The model is a script, so that it needs no account; give Agent a real one.
"""

from __future__ import annotations

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from casemate.integrations.pydantic_ai import CodeInterpreter

CODE = "numbers = [n for n in range(2, 30) if all(n % d for d in range(2, n))]\nsum(numbers)"


def script(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    came = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    if not came:
        return ModelResponse([ToolCallPart("run_python", {"code": CODE})])
    return ModelResponse([TextPart(f"The primes below 30 add up to {came[-1].content}.")])


def main() -> None:
    with CodeInterpreter() as interpreter:
        agent = Agent(FunctionModel(script), toolsets=[interpreter.toolset])
        print(agent.run_sync("Which sum have the primes below 30?").output)


if __name__ == "__main__":
    main()

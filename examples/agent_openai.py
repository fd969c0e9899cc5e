"""An agent of the OpenAI Agents SDK whose code runs in a microVM.

    pip install 'casemate[openai-agents]' && python examples/agent_openai.py

The model is a script, so that it needs no account; give Agent(model=…) a real one, or leave it out.
"""

from __future__ import annotations

import json
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from casemate.integrations.openai_agents import CodeInterpreter

CODE = "numbers = [n for n in range(2, 30) if all(n % d for d in range(2, n))]\nsum(numbers)"


class Script(Model):
    """Calls the tool, then says what has come back."""

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        came = [item for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
        if not came:
            arguments = json.dumps({"code": CODE})
            call = ResponseFunctionToolCall(arguments=arguments, call_id="1", name="run_python", type="function_call")
            return ModelResponse(output=[call], usage=Usage(), response_id=None)
        text = f"The primes below 30 add up to {came[-1]['output'][0]['text']}."
        said = ResponseOutputText(text=text, type="output_text", annotations=[])
        message = ResponseOutputMessage(id="2", content=[said], role="assistant", status="completed", type="message")
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def main() -> None:
    with CodeInterpreter() as interpreter:
        agent = Agent(name="Analyst", instructions="Compute.", tools=interpreter.tools, model=Script())
        result = Runner.run_sync(
            agent, "Which sum have the primes below 30?", run_config=RunConfig(tracing_disabled=True)
        )
        print(result.final_output)


if __name__ == "__main__":
    main()

"""A model of LangChain's with tools whose code runs in a microVM.

    pip install 'casemate[langchain]' && python examples/agent_langchain.py

The model is a script, so that it needs no account. With ``langchain`` installed the loop is ``create_agent(model,
tools=interpreter.tools)``; here it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from casemate.integrations.langchain import CodeInterpreter

CODE = "numbers = [n for n in range(2, 30) if all(n % d for d in range(2, n))]\nsum(numbers)"


def script() -> Iterator[AIMessage]:
    yield AIMessage("", tool_calls=[{"name": "run_python", "args": {"code": CODE}, "id": "1"}])
    yield AIMessage("That is what the primes below 30 add up to.")


def main() -> None:
    model = GenericFakeChatModel(messages=script())
    with CodeInterpreter() as interpreter:
        tools = {tool.name: tool for tool in interpreter.tools}
        messages: list[AnyMessage] = [HumanMessage("Which sum have the primes below 30?")]
        while not isinstance(messages[-1], AIMessage) or messages[-1].tool_calls:
            answer = model.invoke(messages)
            messages.append(answer)
            for call in answer.tool_calls:
                came: ToolMessage = tools[call["name"]].invoke(call)
                print(came.text)
                messages.append(came)
        print(messages[-1].text)


if __name__ == "__main__":
    main()

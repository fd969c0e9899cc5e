"""The OpenAI Agents SDK: tools for an agent whose code runs in a microVM. The extra ``casemate[openai-agents]``.

with CodeInterpreter() as interpreter:
    agent = Agent(name="Analyst", tools=interpreter.tools)
"""

from __future__ import annotations

import base64
from typing import Any

from agents import Tool, ToolOutputImage, ToolOutputText, function_tool

from casemate.integrations.answers import Part
from casemate.integrations.interpreter import LIST, READ, RUN, WRITE, Interpreter

Output = list[Any]  # of ToolOutputText and ToolOutputImage


class CodeInterpreter(Interpreter):
    @property
    def tools(self) -> list[Tool]:
        """``run_python``, ``write_file``, ``read_file``, ``list_files``; all in this interpreter's one sandbox."""

        async def run_python(code: str) -> Output:
            return _output_of(await self.apart(Interpreter.run, code))

        async def write_file(path: str, text: str) -> Output:
            return _output_of(await self.apart(Interpreter.write_file, path, text))

        async def read_file(path: str) -> Output:
            return _output_of(await self.apart(Interpreter.read_file, path))

        async def list_files(path: str) -> Output:
            return _output_of(await self.apart(Interpreter.list_files, path))

        described = ((run_python, RUN), (write_file, WRITE), (read_file, READ), (list_files, LIST))
        return [function_tool(function, description_override=text) for function, text in described]


def _output_of(parts: list[Part]) -> Output:
    return [ToolOutputText(text=part) if isinstance(part, str) else _image(part.mime, part.data) for part in parts]


def _image(mime: str, data: bytes) -> ToolOutputImage:
    return ToolOutputImage(image_url=f"data:{mime};base64,{base64.b64encode(data).decode()}")

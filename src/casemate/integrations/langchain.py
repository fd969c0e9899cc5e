"""LangChain: tools for an agent whose code runs in a microVM. The extra ``casemate[langchain]``.

with CodeInterpreter() as interpreter:
    agent = create_agent(model, tools=interpreter.tools)
"""

from __future__ import annotations

import base64
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from casemate.integrations.answers import Part
from casemate.integrations.interpreter import LIST, READ, RUN, WRITE, Interpreter

Blocks = list[str | dict[str, Any]]  # standard content blocks


class CodeInterpreter(Interpreter):
    @property
    def tools(self) -> list[BaseTool]:
        """``run_python``, ``write_file``, ``read_file``, ``list_files``; all in this interpreter's one sandbox."""

        def run_python(code: str) -> Blocks:
            return _blocks_of(self.run(code))

        async def run_python_apart(code: str) -> Blocks:
            return _blocks_of(await self.apart(Interpreter.run, code))

        def write_file(path: str, text: str) -> Blocks:
            return _blocks_of(self.write_file(path, text))

        def read_file(path: str) -> Blocks:
            return _blocks_of(self.read_file(path))

        def list_files(path: str = ".") -> Blocks:
            return _blocks_of(self.list_files(path))

        run = StructuredTool.from_function(run_python, run_python_apart, description=RUN)
        files = ((write_file, WRITE), (read_file, READ), (list_files, LIST))  # what has no coroutine runs in a thread
        return [run, *(StructuredTool.from_function(function, description=text) for function, text in files)]


def _blocks_of(parts: list[Part]) -> Blocks:
    return [{"type": "text", "text": part} if isinstance(part, str) else _image(part.mime, part.data) for part in parts]


def _image(mime: str, data: bytes) -> dict[str, Any]:
    return {"type": "image", "mime_type": mime, "base64": base64.b64encode(data).decode()}

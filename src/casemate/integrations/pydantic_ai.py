"""pydantic-ai: a toolset whose code runs in a microVM. The extra ``casemate[pydantic-ai]``.

with CodeInterpreter() as interpreter:
    agent = Agent(model, toolsets=[interpreter.toolset])
"""

from __future__ import annotations

from typing import Any

from pydantic_ai import BinaryContent, FunctionToolset, Tool, ToolReturn

from casemate.integrations.answers import Part, text_of
from casemate.integrations.interpreter import LIST, READ, RUN, WRITE, Interpreter


class CodeInterpreter(Interpreter):
    @property
    def toolset(self) -> FunctionToolset[Any]:
        """``run_python``, ``write_file``, ``read_file``, ``list_files``; all in this interpreter's one sandbox."""

        async def run_python(code: str) -> ToolReturn:
            return _returned(await self.apart(Interpreter.run, code))

        async def write_file(path: str, text: str) -> str:
            return text_of(await self.apart(Interpreter.write_file, path, text))

        async def read_file(path: str) -> str:
            return text_of(await self.apart(Interpreter.read_file, path))

        async def list_files(path: str = ".") -> str:
            return text_of(await self.apart(Interpreter.list_files, path))

        described = ((run_python, RUN), (write_file, WRITE), (read_file, READ), (list_files, LIST))
        return FunctionToolset([Tool(function, description=text) for function, text in described], id="casemate")


def _returned(parts: list[Part]) -> ToolReturn:
    texts: list[Part] = [part for part in parts if isinstance(part, str)]
    pictures = [BinaryContent(part.data, media_type=part.mime) for part in parts if not isinstance(part, str)]
    return ToolReturn(text_of(texts) or "(pictures)", content=pictures or None)

"""The examples for agent frameworks, each with the real library, in a process of its own, as a user would start it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
EXAMPLES = Path(__file__).parents[2] / "examples"
LIBRARIES = {
    "openai": "agents",
    "langchain": "langchain_core",
    "pydantic_ai": "pydantic_ai",
    "smolagents": "smolagents",
}
SAYS = {
    "openai": "The primes below 30 add up to 129.\n",
    "langchain": "129\nThat is what the primes below 30 add up to.\n",
    "pydantic_ai": "The primes below 30 add up to 129.\n",
    "smolagents": "{'sum': 129, 'last': 29}\n",
}
PYTHON = os.environ.get("CASEMATE_TEST_FRAMEWORKS", sys.executable)


def said_by(program: Path, library: str) -> str:
    if sys.executable == PYTHON and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; CASEMATE_TEST_FRAMEWORKS may name a Python that has it")
    source = {"PYTHONPATH": str(EXAMPLES.parent / "src")} if sys.executable != PYTHON else {}
    argv = [PYTHON, program]
    done = subprocess.run(argv, env=os.environ | source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_example_says_what_came_of_it(name: str, daemon: Daemon, no_trace: None) -> None:
    assert said_by(EXAMPLES / f"agent_{name}.py", LIBRARIES[name]) == SAYS[name]
    assert not Sandbox.list()


def test_an_agent_that_loses_its_interpreter_goes_on(daemon: Daemon, no_trace: None) -> None:
    said = said_by(Path(__file__).with_name("agent_that_loses.py"), "smolagents")
    assert said == "2\n4\n6\n8\n10\n[the sandbox has ended (\n"
    assert not Sandbox.list()

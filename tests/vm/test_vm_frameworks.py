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


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_example_says_what_came_of_it(name: str, daemon: Daemon, no_trace: None) -> None:
    if sys.executable == PYTHON and importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed; CASEMATE_TEST_FRAMEWORKS may name a Python that has it")
    source = {"PYTHONPATH": str(EXAMPLES.parent / "src")} if sys.executable != PYTHON else {}
    argv = [PYTHON, EXAMPLES / f"agent_{name}.py"]
    done = subprocess.run(argv, env=os.environ | source, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == SAYS[name], done.stderr
    assert not Sandbox.list()

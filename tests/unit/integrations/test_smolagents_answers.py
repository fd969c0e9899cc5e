"""What becomes of what a guest answers an agent framework: nothing of it is run or opened here."""

from __future__ import annotations

import base64
import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

smolagents = pytest.importorskip("smolagents")

from smolagents.tools import get_tools_definition_code  # noqa: E402

from casemate.integrations.smolagents import CasemateExecutor, _answer_of  # noqa: E402


class Harm:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def test_a_pickle_is_no_answer(tmp_path: Path) -> None:
    harm = base64.b64encode(pickle.dumps(Harm(tmp_path / "harmed"))).decode()
    for value in (f"pickle:{harm}", harm, f'safe:{{"__type__": "pickle", "data": "{harm}"}}'):
        with suppress(ValueError):
            _answer_of(value)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(base64.b64decode(harm))
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("kind", ["PIL.Image", "Path", "unheard of"])
def test_what_would_open_a_picture_stays_json(kind: str) -> None:
    assert _answer_of("safe:" + json.dumps({"__type__": kind, "data": "AAAA"})) == {"type": kind, "data": "AAAA"}


def test_plain_answers_come_as_they_were() -> None:
    assert _answer_of('safe:{"a": [1, null, {"__type__": "tuple", "data": [1, 2]}]}') == {"a": [1, None, (1, 2)]}
    assert _answer_of('safe:{"__type__": "ndarray", "data": [1, 2], "dtype": "object"}') == [1, 2]


@pytest.mark.parametrize("value", ["safe:{", "", "safe:" + "[" * 100_000, 'safe:{"__type__": "set", "data": [[]]}'])
def test_what_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        _answer_of(value)


def test_final_answer_is_sent_as_often_as_an_agent_runs() -> None:
    executor, tool = CasemateExecutor(), smolagents.FinalAnswerTool()
    for _ in range(3):
        executor._patch_final_answer_with_exception(tool)
        source = get_tools_definition_code({tool.name: tool})
        assert "allow_pickle_setting" not in source  # a name that only smolagents' own closure has
        assert "ALLOW_PICKLE = False" in source

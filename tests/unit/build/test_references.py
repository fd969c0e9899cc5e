"""How images are named."""

from __future__ import annotations

import pytest

from casemate.build.references import Reference, check_name
from casemate.errors import InvalidSpec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python", Reference("python")),
        ("python:latest", Reference("python")),
        ("python:latest@2", Reference("python", 2)),
        ("work:Good_1.2", Reference("work", tag="Good_1.2")),
        ("my.app_2-x@12", Reference("my.app_2-x", 12)),
        ("sha256:" + "a" * 64, Reference(digest="a" * 64)),
        ("sha256:0123456789ab", Reference(digest="0123456789ab")),
    ],
)
def test_what_is_understood(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@1", "Python", "../x", "a/b", "x" * 64, "python@", "python@-1", "python@x", "python@²", "python@1234567890",
     "sha256:", "sha256:abc", "sha256:" + "g" * 12, "sha256:" + "a" * 65, "a\n", "prune",
     "work:-x", "work:a b", "work:" + "x" * 64, "work:good@1", "work:a:b", "work:../x"],
)  # fmt: skip
def test_what_is_not(text: str) -> None:
    with pytest.raises(InvalidSpec):
        Reference.parse(text)


def test_a_word_of_the_api_is_no_name() -> None:
    with pytest.raises(InvalidSpec, match="a word of the API"):
        check_name("prune")

"""Which releases machines run under, and what is said of the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ToolMissing
from casemate.vmm.firecracker.versions import (
    DEFECTS,
    NEXT,
    OLDEST,
    PINNED,
    Version,
    check_version,
    find_flaws,
    parse_version,
)

GOOD = ("1.13.2", "1.14.1", "1.14.4", "1.15.0", "1.15.1", "1.15.7")
BAD = {
    "1.12.1": "CVE-2026-1386",
    "1.13.0": "CVE-2026-1386",
    "1.13.1": "CVE-2026-1386",
    "1.14.0": "CVE-2026-1386",
    "1.16.0": "firecracker #5958",
    "1.16.1": "firecracker #6100",
    "1.16.2": "range",
    "1.17.0": "range",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_good_release(text: str) -> None:
    check_version(parse_version(text))


@pytest.mark.parametrize(("text", "defect"), BAD.items())
def test_a_bad_release_is_refused_by_its_defect_and_run_if_that_is_wanted(text: str, defect: str) -> None:
    version = parse_version(text)
    with pytest.raises(ToolMissing) as refused:
        check_version(version)
    assert refused.value.evidence["defect"] == defect
    assert text in refused.value.message
    assert f"casemate vmm install firecracker (installs {PINNED})" in refused.value.hint
    assert defect == "range" or defect in refused.value.message
    check_version(version, known_bad_allowed=True)


FLAWED = {"1.13.2": 3, "1.14.1": 3, "1.14.3": 3, "1.14.4": 1, "1.15.0": 2, "1.15.1": 0}


@pytest.mark.parametrize(("text", "flaws"), FLAWED.items())
def test_a_flaw_is_no_reason_to_refuse(text: str, flaws: int) -> None:
    check_version(version := parse_version(text))
    assert len(find_flaws(version)) == flaws
    assert len({flaw.name for flaw in find_flaws(version)}) == flaws


@pytest.mark.parametrize("text", ["0.25.2", "1.11.0", "2.0.0"])
def test_what_speaks_another_api_is_refused_whatever_is_allowed(text: str) -> None:
    with pytest.raises(ToolMissing, match="another API"):
        check_version(parse_version(text), known_bad_allowed=True)


def test_what_is_installed_is_good() -> None:
    check_version(PINNED)
    assert OLDEST <= PINNED < NEXT
    assert all(defect.first <= defect.last for defect in DEFECTS)


@pytest.mark.parametrize(
    "text",
    [
        "Firecracker v1.15.1\n\n2026-11-30T22:40:24.8 [anonymous-instance:main] Firecracker exiting successfully.\n",
        "Jailer v1.15.1\n\n",
        "1.15.1",
        "v1.15.1",
    ],
)
def test_how_it_is_told(text: str) -> None:
    assert parse_version(text) == Version(1, 15, 1)


@pytest.mark.parametrize(
    "text", ["", "\n", "Firecracker v1.16.0-dev", "v1.15.1-dirty", "1.15", "x" * 10**6, "v1.15.1 and more"]
)
def test_what_tells_no_release(text: str) -> None:
    with pytest.raises(ToolMissing) as refused:
        parse_version(text)
    assert len(refused.value.message) < 300


@given(st.tuples(*[st.integers(0, 9999)] * 3), st.tuples(*[st.integers(0, 9999)] * 3))
def test_they_are_in_order(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (Version(*one) < Version(*other)) == (one < other)
    assert parse_version(str(Version(*one))) == Version(*one)

"""What the benchmark does beside somebody's pools."""

from __future__ import annotations

import pytest

from casemate.bench.pools import refuse_beside
from casemate.errors import StateConflict


@pytest.mark.parametrize("image", ["python", "python@3", "python:latest", "sha256:0123456789ab"])
def test_it_takes_nobodys_pool_and_measures_no_claims_by_mistake(image: str) -> None:
    others = [{"id": "a", "image": "pythonic"}, {"id": "b", "image": "mine@1"}]
    refuse_beside(others)
    with pytest.raises(StateConflict, match="pool c keeps"):
        refuse_beside([*others, {"id": "c", "image": image}])

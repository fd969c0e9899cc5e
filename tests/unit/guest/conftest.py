from __future__ import annotations

from collections.abc import Iterator

import pytest
from cell_guest import CellGuest


@pytest.fixture(scope="module")
def guest() -> Iterator[CellGuest]:
    """An agent of the module's own, with a warm Python and no VM."""
    guest = CellGuest()
    yield guest
    guest.close()

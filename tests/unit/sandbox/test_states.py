"""Every (state, action) pair has an edge or a named refusal."""

import itertools

import pytest

from casemate.errors import StateConflict
from casemate.sandbox.states import EDGES, LIVE, Action, State, go


@pytest.mark.parametrize(("state", "action"), list(itertools.product(State, Action)))
def test_each_pair_has_an_edge_or_a_named_refusal(state: State, action: Action) -> None:
    if (state, action) in EDGES:
        assert go(state, action) is EDGES[state, action]
    else:
        with pytest.raises(StateConflict) as refusal:
            go(state, action, "sandbox x")
        assert state.value in refusal.value.message
        assert action.value in refusal.value.message
        assert refusal.value.hint


def test_every_live_state_can_be_terminated() -> None:
    assert all(go(state, Action.TERMINATE) is State.TERMINATING for state in LIVE)


def test_the_end_is_the_end() -> None:
    ways_on = {EDGES[pair] for pair in EDGES if pair[0] is State.TERMINATED}
    assert ways_on == {State.TERMINATED}


def test_every_state_can_be_reached() -> None:
    assert set(EDGES.values()) | {State.READY, State.PENDING} == set(State)

"""What a guest says about execs, cells and files: understood, or a ProtocolViolation, never anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ProtocolViolation
from casemate.sandbox import cell_ends, cells, contexts, execs, files

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
KINDS = st.sampled_from(
    ["exited", "signaled", "timed-out", "out-of-memory", "ok", "error", "context-died", "interrupted"]
)
NAMES = st.sampled_from(
    [
        "kind",
        "code",
        "signal",
        "after_s",
        "name",
        "value",
        "traceback",
        "reason",
        "state_kept",
        "files_changed",
        "left_out",
        "state",
        "cell_id",
        "context",
        "offset",
        "end",
        "text",
        "duration_ms",
        "cpu_ms",
        "peak_memory_mib",
        "path",
        "type",
        "size",
        "mode",
        "uid",
        "gid",
        "mtime_ns",
    ]
)
ENDS = st.dictionaries(NAMES, KINDS | SCALARS, max_size=6)
BODIES = st.dictionaries(NAMES, ENDS | SCALARS, max_size=20)


@pytest.mark.parametrize(
    "parse",
    [
        execs._ended,
        lambda body: cell_ends.ended(body, cell_ends.LeftOut(0, 0)),
        cells.CellInfo.from_agent,
        contexts.ContextInfo.from_agent,
        files._entry,
    ],
)
@given(body=BODIES)
def test_a_lying_guest_only_gets_a_violation(parse, body):
    try:
        parsed = parse(body)
    except ProtocolViolation:
        return
    parsed.to_json()


@given(st.integers(0, 255), st.integers(1, 64), st.floats(0, 1e6))
def test_every_end_survives_the_way(code, signal, after_s):
    for end in (
        {"kind": "exited", "code": code},
        {"kind": "signaled", "signal": signal},
        {"kind": "timed-out", "after_s": after_s},
        {"kind": "out-of-memory"},
    ):
        body = {"end": end, "duration_ms": 1.5, "cpu_ms": None, "peak_memory_mib": 3}
        assert execs._ended(body).to_json() == body | {"peak_memory_mib": 3.0}

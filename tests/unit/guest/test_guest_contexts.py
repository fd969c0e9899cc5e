"""Contexts over the wire, natively: side by side, begun anew, restarted, removed; their queues and bounds."""

from __future__ import annotations

import os

from cell_guest import CellGuest, Seen

from casemate.guest import contexts


def create(guest: CellGuest, context_id: str, **params: object) -> Seen:
    return guest.act("context", op="create", context_id=context_id, **params)


def listed(guest: CellGuest) -> dict[str, dict[str, object]]:
    found = guest.act("context", op="list").accepted
    assert found is not None
    return {info["context_id"]: info for info in found["contexts"]}


def remove(guest: CellGuest, *context_ids: str) -> None:
    for context_id in context_ids:
        assert guest.act("context", op="remove", context_id=context_id).accepted == {}


def test_one_is_created_and_is_a_process_of_its_own(guest: CellGuest) -> None:
    seen = create(guest, "own", cwd="/usr", env={"COLOUR": "blue"})
    assert seen.accepted is not None
    info = seen.accepted["context"]
    assert (info["context_id"], info["language"], info["cwd"], info["state"]) == ("own", "python", "/usr", "idle")
    assert (info["queued"], info["execution_count"]) == (0, 0)
    assert info["version"].startswith("3.")
    ran = guest.run("import os; os.getpid(), os.getcwd(), os.environ['COLOUR']", context="own")
    assert ran.text == f"({info['pid']}, '/usr', 'blue')"
    assert guest.run("import os; os.getcwd()").text == "'/tmp'"
    assert listed(guest)["own"]["execution_count"] == 1
    remove(guest, "own")


def test_contexts_run_side_by_side(guest: CellGuest) -> None:
    create(guest, "a")
    create(guest, "b")
    wait = "import os, time\nopen({mine!r}, 'w')\nwhile not os.path.exists({other!r}): time.sleep(0.01)\n'met'"
    names = (f"/tmp/casemate-test-{os.getpid()}-a", f"/tmp/casemate-test-{os.getpid()}-b")
    try:
        a = guest.begin_cell(wait.format(mine=names[0], other=names[1]), context="a", timeout_s=10)
        b = guest.begin_cell(wait.format(mine=names[1], other=names[0]), context="b", timeout_s=10)
        guest.until(lambda: a.over and b.over)
    finally:
        for name in names:
            os.unlink(name)
    assert (a.text, b.text) == ("'met'", "'met'")
    remove(guest, "a", "b")


def test_a_bad_folder_an_unknown_language_an_id_in_use(guest: CellGuest) -> None:
    seen = create(guest, "nowhere", cwd="/no/such/folder")
    assert seen.denied is not None
    assert (seen.denied.code, seen.denied.body["errno"]) == ("exec-refused", "ENOENT")
    seen = create(guest, "unheard-of", language="jupyter:unheard-of")
    assert seen.denied is not None
    assert seen.denied.code == "not-supported"
    assert "unheard-of" in seen.denied.body["message"]
    assert not {"nowhere", "unheard-of"} & set(listed(guest))
    create(guest, "twice")
    seen = create(guest, "twice")
    assert seen.denied is not None
    assert seen.denied.code == "state-conflict"
    remove(guest, "twice")


def test_a_cell_for_a_context_that_is_not_there(guest: CellGuest) -> None:
    seen = guest.begin_cell("1", context="nobody")
    assert seen.denied is not None
    assert seen.denied.code == "not-found"
    for op in ("restart", "interrupt", "remove"):
        denied = guest.act("context", op=op, context_id="nobody").denied
        assert denied is not None
        assert denied.code == "not-found"


def test_the_default_one_begins_in_a_language_and_keeps_it(guest: CellGuest) -> None:
    guest.run("1")
    seen = guest.begin_cell("1", language="bash")
    assert seen.denied is not None
    assert seen.denied.code == "state-conflict"
    assert guest.run("1", language="python").kind == "ok"


def test_a_restart_forgets_the_variables_and_ends_the_cell(guest: CellGuest) -> None:
    guest.run("gone = 1")
    before = listed(guest)["default"]["pid"]
    running = guest.begin_cell("print('begun'); import time; time.sleep(60)")
    waiting = guest.begin_cell("'gone' in globals()")
    guest.until(lambda: running.stdout)
    seen = guest.act("context", op="restart", context_id="default")
    guest.until(lambda: running.over and waiting.over)
    assert seen.accepted is not None
    info = seen.accepted["context"]
    assert info["pid"] not in (0, before)
    assert running.end is not None
    assert running.end["end"] == {"kind": "context-died", "reason": "the context was restarted"}
    assert waiting.text == "False"


def test_a_dead_one_is_restarted(guest: CellGuest) -> None:
    create(guest, "mortal")
    assert guest.run("import os; os._exit(1)", context="mortal").kind == "context-died"
    assert listed(guest)["mortal"]["state"] == "dead"
    seen = guest.act("context", op="restart", context_id="mortal")
    assert seen.accepted is not None
    assert seen.accepted["context"]["state"] == "idle"
    remove(guest, "mortal")


def test_one_that_dies_between_cells_begins_anew(guest: CellGuest) -> None:
    create(guest, "quiet")
    guest.run("import os, threading; threading.Timer(0.1, lambda: os._exit(7)).start()", context="quiet")
    guest.until(lambda: listed(guest)["quiet"]["state"] == "dead")
    assert guest.run("1 + 1", context="quiet").text == "2"
    remove(guest, "quiet")


def test_an_interrupt_of_the_context_is_one_of_its_cell(guest: CellGuest) -> None:
    running = guest.begin_cell("print('begun'); import time; time.sleep(60)")
    guest.until(lambda: running.stdout)
    assert guest.act("context", op="interrupt", context_id="default").accepted == {}
    guest.until(lambda: running.over)
    assert running.kind == "interrupted"
    assert guest.act("context", op="interrupt", context_id="default").accepted == {}  # nothing runs


def test_removal_ends_every_cell(guest: CellGuest) -> None:
    create(guest, "short")
    running = guest.begin_cell("print('begun'); import time; time.sleep(60)", context="short")
    waiting = guest.begin_cell("1", context="short")
    guest.until(lambda: running.stdout)
    remove(guest, "short")
    guest.until(lambda: running.over and waiting.over)
    for seen in (running, waiting):
        assert seen.end is not None
        assert seen.end["end"] == {"kind": "context-died", "reason": "the context was removed"}
    assert "short" not in listed(guest)


def test_cells_wait_and_are_told_their_place(guest: CellGuest) -> None:
    guest.run("import time; seen = []")
    rans = [guest.begin_cell(f"time.sleep(0.1); seen.append({n}); seen") for n in range(4)]
    assert [ran.accepted and ran.accepted["place"] for ran in rans] == [0, 0, 1, 2]
    guest.until(lambda: all(ran.over for ran in rans))
    assert [ran.text for ran in rans] == ["[0]", "[0, 1]", "[0, 1, 2]", "[0, 1, 2, 3]"]
    places = [said["place"] for said in rans[3].said if isinstance(said, dict) and said["event"] == "queued"]
    assert places == [1, 0]


def test_one_that_waits_is_interrupted_where_it_waits(guest: CellGuest) -> None:
    running = guest.begin_cell("print('begun'); import time; time.sleep(60)", cell_id="runs")
    waiting = guest.begin_cell("1", cell_id="waits")
    guest.until(lambda: running.stdout)
    guest.act("cell", op="interrupt", cell_id="waits")
    guest.until(lambda: waiting.over)
    assert waiting.end is not None
    assert waiting.end["end"] == {"kind": "interrupted", "state_kept": True}
    assert not running.over
    guest.act("cell", op="interrupt", cell_id="runs")
    guest.until(lambda: running.over)


def test_a_queue_has_an_end(guest: CellGuest) -> None:
    rans = [guest.begin_cell("import time; time.sleep(60)", cell_id=f"many-{n}") for n in range(66)]
    assert guest.contexts.cells == 65
    assert rans[65].denied is not None
    assert rans[65].denied.code == "state-conflict"
    assert "64" in rans[65].denied.body["message"]
    for n in reversed(range(65)):
        guest.act("cell", op="interrupt", cell_id=f"many-{n}")
    guest.until(lambda: all(ran.over for ran in rans))
    assert {ran.kind for ran in rans[:65]} == {"interrupted"}


def test_there_are_only_so_many_contexts(guest: CellGuest) -> None:
    guest.run("1")
    before = len(listed(guest))
    names = [f"crowd-{n}" for n in range(contexts.CONTEXTS_AT_MOST - before)]
    for name in names:
        assert create(guest, name).accepted is not None
    seen = create(guest, "one-more")
    assert seen.denied is not None
    assert seen.denied.code == "state-conflict"
    remove(guest, *names)


def test_completions_go_through_the_queue(guest: CellGuest) -> None:
    guest.run("something_long = 1")
    before = guest.run("0").end
    seen = guest.run("something_l", cell_id="complete", act="complete", cursor=11)
    assert [sorted(result) for result in seen.results] == [["end", "matches", "start"]]
    after = guest.run("0").end
    assert before is not None
    assert after is not None
    assert after["execution_count"] == before["execution_count"] + 1
    assert guest.act("cell", op="join", cell_id="complete", offset=0).denied is not None


def test_fresh_randomness_reaches_every_living_context(guest: CellGuest) -> None:
    guest.run("import random; state = random.getstate()")
    guest.contexts.begin_anew()
    assert guest.run("random.getstate() == state").text == "False"
    guest.run("state = random.getstate()")
    assert guest.run("random.getstate() == state").text == "True"


def test_no_descriptor_is_left(guest: CellGuest) -> None:
    def settled() -> bool:
        return len(guest.zygote._waiting) == 2

    guest.run("1")
    guest.until(settled)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        create(guest, "brief")
        guest.run("input()", stdin=b"x\n", context="brief")
        guest.run("import os; os._exit(0)", context="brief")
        remove(guest, "brief")
    guest.until(settled)
    assert len(os.listdir("/proc/self/fd")) == before


def test_inspection_goes_the_same_way(guest: CellGuest) -> None:
    seen = guest.run("len", cell_id="inspect", act="inspect", cursor=3, detail=0)
    assert "length" in seen.results[0]["data"]["text/plain"] or "items" in seen.results[0]["data"]["text/plain"]
    assert guest.run("len", cell_id="nothing", act="sing", cursor=3).denied.code == "invalid-spec"

"""The interpreter an agent talks to all day: contexts, what they show, what they keep, and cells joined again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from vm_world import Daemon

from casemate.errors import RequestError
from casemate.sdk import Interrupted, Ok, Raised, Result, Sandbox

pytestmark = pytest.mark.vm
SOON_S = 60.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def lasting(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(idle_timeout_s=None) as sandbox:
        yield sandbox


# ------------------------------------------------------------------ contexts


def test_each_context_has_names_a_folder_and_an_environment_of_its_own(lasting: Sandbox) -> None:
    lasting.run_code("name = 'first'")
    other = lasting.contexts.create(cwd="/tmp", env={"COLOUR": "blue"})
    lasting.run_code("name = 'second'", context=other)
    found = lasting.run_code("import os; name, os.getcwd(), os.environ['COLOUR']", context=other)
    assert found.text == "('second', '/tmp', 'blue')"
    assert lasting.run_code("name").text == "'first'"
    assert {known.context_id for known in lasting.contexts.list()} >= {"default", other.context_id}
    lasting.contexts.restart(other)
    assert lasting.run_code("'name' in dir(), os if 'os' in dir() else None", context=other).text == "(False, None)"
    lasting.contexts.remove(other)
    assert other.context_id not in {known.context_id for known in lasting.contexts.list()}


def test_a_context_in_no_folder_is_refused(lasting: Sandbox) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        lasting.contexts.create(cwd="/nowhere")


def test_ipython_is_there(lasting: Sandbox) -> None:
    context = lasting.contexts.create()
    code = "import asyncio\nawait asyncio.sleep(0.01)\n%cd -q /tmp\nfound = !echo $((6 * 7))\nfound[0]"
    assert lasting.run_code(code, context=context).text == "'42'"
    assert lasting.run_code("_, Out[1] == _", context=context).text == "('42', True)"
    lines = lasting.run_code("%%bash\necho from bash\necho and err >&2", context=context)
    assert (lines.logs.stdout, lines.logs.stderr) == ("from bash\n", "and err\n")
    assert lasting.run_code("!exit 3", context=context).end == Ok()
    error = lasting.run_code("%nosuchmagic", context=context).end
    assert isinstance(error, Raised) or error == Ok()
    lasting.contexts.remove(context)


# ------------------------------------------------------------------- results


def test_a_plot_is_a_picture(lasting: Sandbox) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.title('squares')\nplt.show()"
    execution = lasting.run_code(code, timeout_s=SOON_S)
    pictures = [result.png for result in execution.results if result.png]
    assert len(pictures) == 1
    assert pictures[0].startswith(PNG)


def test_a_table_is_text_html_and_data(lasting: Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'n': [1, 2, None], 'word': ['a', 'b', 'c']})"
    (result,) = lasting.run_code(code, timeout_s=SOON_S).results
    assert result.type == "result"
    assert "word" in (result.text or "")
    assert "<table" in (result.html or "")
    assert result.table is not None
    assert [column.name for column in result.table.columns] == ["n", "word"]
    assert result.table.shape == (3, 2)
    assert [list(row) for row in result.table.rows] == [[1.0, "a"], [2.0, "b"], [None, "c"]]


def test_a_long_table_is_cut_and_says_its_true_shape(lasting: Sandbox) -> None:
    code = "import numpy as np, pandas as pd\npd.DataFrame({'x': np.arange(100_000)})"
    table = lasting.run_code(code, timeout_s=SOON_S).results[0].table
    assert table is not None
    assert table.shape == (100_000, 1)
    assert 0 < len(table.rows) < 100_000


def test_output_and_displays_keep_their_order(lasting: Sandbox) -> None:
    code = (
        "import sys\n"
        "for n in range(5):\n"
        "    print('out', n)\n"
        "    print('err', n, file=sys.stderr)\n"
        "    display({'text/markdown': f'*{n}*', 'text/plain': f'shown {n}'}, raw=True)\n"
    )
    seen: list[str] = []

    def hear(piece: bytes) -> None:
        seen.append(piece.decode())

    def show(result: Result) -> None:
        seen.append(f"{result.text}\n")

    lasting.run_code(code, on_stdout=hear, on_stderr=hear, on_result=show, timeout_s=SOON_S)
    assert "".join(seen) == "".join(f"out {n}\nerr {n}\nshown {n}\n" for n in range(5))


def test_a_line_arrives_while_the_cell_still_runs(lasting: Sandbox) -> None:
    began = time.monotonic()
    at: list[float] = []
    code = "import time\nprint('at once')\ntime.sleep(2)\nprint('later')"
    lasting.run_code(code, on_stdout=lambda _: at.append(time.monotonic() - began), timeout_s=SOON_S)
    assert at[-1] - at[0] > 1


def test_the_files_a_cell_changed_are_named(lasting: Sandbox) -> None:
    context = lasting.contexts.create()
    lasting.run_code("open('kept.txt', 'w').write('1'); open('gone.txt', 'w').write('1')", context=context)
    code = "import os\nopen('new.txt', 'w').write('2')\nopen('kept.txt', 'a').write('2')\nos.remove('gone.txt')"
    found = {
        change.path.rpartition("/")[2]: change.change
        for change in lasting.run_code(code, context=context).files_changed
    }
    assert found == {"new.txt": "created", "kept.txt": "modified", "gone.txt": "deleted"}
    assert not lasting.run_code("1 + 1", context=context).files_changed
    lasting.contexts.remove(context)


# ------------------------------------------------------- detached, and joined


def test_a_detached_cell_is_joined_again_and_replayed(lasting: Sandbox) -> None:
    context = lasting.contexts.create()
    code = "import time\nfor n in range(3):\n    print(n)\n    time.sleep(0.2)\n'end'"
    cell = lasting.run_code(code, context=context, detach=True)
    whole = cell.join()
    assert (whole.logs.stdout, whole.text, whole.end) == ("0\n1\n2\n", "'end'", Ok())
    assert lasting.join_code(cell.cell_id, offset=2).logs.stdout == "1\n2\n"
    lasting.contexts.remove(context)


def test_a_detached_cell_is_interrupted_by_its_id(lasting: Sandbox) -> None:
    context = lasting.contexts.create()
    cell = lasting.run_code("while True: pass", context=context, detach=True)
    cell.interrupt()
    assert cell.join().end == Interrupted(state_kept=True)
    lasting.contexts.remove(context)


# --------------------------------------------------------- suspend and resume


def test_all_contexts_and_a_running_cell_survive_suspend_and_resume(lasting: Sandbox) -> None:
    other = lasting.contexts.create()
    lasting.run_code("kept = 1")
    lasting.run_code("kept = 2", context=other)
    code = "import time\nfor n in range(40):\n    print(n)\n    time.sleep(0.1)"
    cell = lasting.run_code(code, context=other, detach=True)
    lasting.suspend()
    assert lasting.run_code("kept").text == "1"
    assert cell.join().logs.stdout == "".join(f"{n}\n" for n in range(40))
    assert lasting.run_code("kept", context=other).text == "2"
    lasting.contexts.remove(other)


def test_generators_are_new_after_a_claim_unless_the_user_seeded_them(lasting: Sandbox) -> None:
    """Two clones of one snapshot: nothing drawn alike; a seed of the user's is the user's."""
    draw = "import random, numpy as np\nrandom.random(), np.random.random()"
    with Sandbox.create() as one, Sandbox.create() as other:
        assert one.run_code(draw).text != other.run_code(draw).text
        seeded = "random.seed(7)\n" + draw
        ones, others = one.run_code(seeded).text, other.run_code(seeded).text
        assert ones is not None
        assert others is not None
        assert ones.split(",")[0] == others.split(",")[0]
        assert ones.split(",")[1] != others.split(",")[1]

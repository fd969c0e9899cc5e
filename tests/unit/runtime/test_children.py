"""What a child is handed: rights, descriptors, randomness; and what the client does about bad ones."""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from zygote_bench import PRELOAD, RUNTIME, Bench, Outcome

from casemate.guest.zygote import Identity, Job

_CAP_SYS_RESOURCE = 24
CAN_RETITLE = bool(
    int(re.findall("CapEff:\t(.*)", Path("/proc/self/status").read_text())[0], 16) >> _CAP_SYS_RESOURCE & 1
)
DRAWS = """
import os, random, sys, tempfile, uuid
print(random.random(), random.Random(random.getrandbits(64)).random(), uuid.uuid1().clock_seq)
print(next(tempfile._get_candidate_names()))
if "numpy.random" in sys.modules:
    import numpy.random
    print(numpy.random.rand(), numpy.random.mtrand._rand.randint(1 << 30))
"""


def run(bench: Bench, folder: Path, code: str, identity: Identity | None = None, **env: str) -> Outcome:
    (folder / "x.py").write_text(code)
    return bench.run(["x.py"], folder, bench.env(**env), identity=identity)


def refusal(bench: Bench, job: Job) -> str:
    refused: list[str] = []
    unexpected: list[object] = []
    null = os.open("/dev/null", os.O_RDWR)
    bench.loop.run_until(lambda: len(bench.zygote._waiting) > 0)
    child = bench.zygote.run_script(
        job,
        (null, null, null),
        started=lambda: unexpected.append("started"),
        refused=refused.append,
        exited=unexpected.append,
    )
    os.close(null)
    assert child is not None
    bench.loop.run_until(lambda: bool(refused) and child.pid not in bench.reaper.adopted)
    assert not unexpected
    return refused[0]


def test_no_two_children_draw_the_same(bench: Bench, tmp_path: Path) -> None:
    draws = [run(bench, tmp_path, DRAWS) for _ in range(3)]
    assert all(one.returncode == 0 for one in draws), draws
    words = [one.stdout.split() for one in draws]
    for first, second in pairwise(words):
        assert not set(first) & set(second)


def test_without_reseeding_they_would(bench: Bench, tmp_path: Path) -> None:
    """The test above can fail: children of one zygote share what is seeded before the fork."""
    code = "import random; random.setstate(STATE); print(random.random())"
    state = ast.literal_eval(run(bench, tmp_path, "import random; print(random.getstate())").stdout.decode())
    draws = {run(bench, tmp_path, code.replace("STATE", repr(state))).stdout for _ in range(2)}
    assert len(draws) == 1


def test_missing_working_folder_is_refused(bench: Bench) -> None:
    assert refusal(bench, Job(["x.py"], bench.env(), "/no/such/folder", None)) == "ENOENT"


def test_working_folder_of_another_kind_is_refused(bench: Bench) -> None:
    assert refusal(bench, Job(["x.py"], bench.env(), "/dev/null", None)) == "ENOTDIR"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_rights_are_dropped_for_good(bench: Bench) -> None:
    code = (
        "import os\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "try: os.setuid(0)\n"
        "except PermissionError as error: print(error)\n"
        "print(os.stat('/proc/self/environ').st_uid, len(os.listdir('/proc/self/fd')))\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to all but root
        os.chmod(folder, 0o755)
        done = run(bench, Path(folder), code, Identity(12345, 12346, (12347,)))
    assert done.stderr == b""
    assert done.stdout.decode().splitlines() == [
        "(12345, 12345, 12345) (12346, 12346, 12346) [12347]",
        "[Errno 1] Operation not permitted",
        "12345 4",
    ]


@pytest.mark.skipif(not CAN_RETITLE, reason="needs CAP_SYS_RESOURCE, which PID 1 of a guest has")
def test_command_line_is_the_scripts(bench: Bench, tmp_path: Path) -> None:
    done = run(bench, tmp_path, "print(open('/proc/self/cmdline').read().split('\\0'))")
    assert done.stdout == b"['python3', 'x.py', '']\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_working_folder_is_entered_with_the_users_rights(bench: Bench, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    job = Job(["x.py"], bench.env(), str(tmp_path), Identity(12345, 12345))
    assert refusal(bench, job) == "EACCES"


def test_too_big_a_job_is_left_to_a_cold_start(bench: Bench) -> None:
    bench.loop.run_until(lambda: len(bench.zygote._waiting) == 2)
    null = os.open("/dev/null", os.O_RDWR)
    job = Job(["x.py"], bench.env(BIG="x" * 300_000), "/", None)
    child = bench.zygote.run_script(
        job, (null, null, null), started=lambda: None, refused=lambda _: None, exited=lambda _: None
    )
    os.close(null)
    assert child is None
    assert len(bench.zygote._waiting) == 2


def test_a_spare_that_dies_is_replaced(bench: Bench) -> None:
    bench.loop.run_until(lambda: len(bench.zygote._waiting) == 2)
    victim = bench.zygote._waiting[0]
    os.kill(victim.pid, 9)
    bench.loop.run_until(lambda: victim not in bench.zygote._waiting and len(bench.zygote._waiting) == 2)
    assert not bench.failures


def test_imports_only_the_standard_library_and_itself() -> None:
    for path in RUNTIME.rglob("*.py"):
        allowed = sys.stdlib_module_names | {"_casemate_runtime"}
        if path.name == "ipython.py":  # imported where there is IPython
            allowed |= {"IPython", "traitlets"}
        if path.name == "jupyter_engine.py":  # imported where a kernel is asked for
            allowed |= {"jupyter_client", "zmq"}
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert all(name.partition(".")[0] in allowed for name in names), (path, names)


def test_root_that_ends_is_told_and_leaves_nothing(subreaper: None) -> None:
    bench = Bench(str(Path(sys.base_prefix) / "bin" / "python3"), preload=())
    os.kill(bench.zygote.root_pid, 9)
    bench.loop.run_until(lambda: bool(bench.failures) and not bench.reaper.adopted)
    assert len(bench.failures) == 1
    assert bench.zygote.take() is None


@pytest.mark.parametrize("lie", ["[]", "[" * 50_000, "x" * 250_000, "\\xff"])
def test_root_that_lies_is_ended(subreaper: None, tmp_path: Path, lie: str) -> None:
    """A Python of the image's own making, that answers with rubbish."""
    impostor = tmp_path / "python3"
    impostor.write_text(
        f"#!{sys.executable} -I\n"
        "import json, os, socket, sys, time\n"
        "s = socket.socket(fileno=json.loads(os.environ['CASEMATE_ZYGOTE'])['fd'])\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)\n"
        f"s.send({lie!r}.encode('latin-1'))\n"
        "s.recv(1)\n"
    )
    impostor.chmod(0o755)
    with pytest.raises(AssertionError):
        Bench(str(impostor), preload=PRELOAD)

"""Languages other than Python in a guest: bash, Node where the image has it, and a Jupyter kernel of a registry's."""

from __future__ import annotations

import importlib.metadata
import io
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fair import fair_clock
from vm_world import Daemon

from casemate.errors import RequestError
from casemate.sdk import Client, CodeTimedOut, ContextDied, Images, Ok, Raised, Sandbox

pytestmark = pytest.mark.vm
SOON_S = 120.0
KERNEL = "calysto-scheme"
DONE_WITHOUT = {"debugpy", "jedi"}  # ipykernel and IPython ask for them and don't need them: five of seven files


@pytest.fixture(scope="module")
def lasting(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(idle_timeout_s=None) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def full(daemon: Daemon) -> Iterator[Sandbox]:
    with Client() as client:
        names = {image["name"] for image in Images(client).list()}
    if "python-full" not in names:
        pytest.skip("the image python-full is not built: casemate image build python-full")
    with Sandbox.create("python-full", idle_timeout_s=None) as sandbox:
        yield sandbox


def test_bash_keeps_its_state(lasting: Sandbox) -> None:
    context = lasting.contexts.create("bash", cwd="/tmp", env={"COLOUR": "blue"})
    assert context.language == "bash"
    assert lasting.run_code("n=6; f() { echo $((n * 7)); }; cd /usr", context=context).end == Ok()
    execution = lasting.run_code("f; pwd; echo $COLOUR; cat; echo err >&2; (exit 3)", context=context, stdin=b"given")
    assert (execution.logs.stdout, execution.logs.stderr) == ("42\n/usr\nblue\ngiven", "err\n")
    assert isinstance(execution.end, Raised)
    assert (execution.end.name, execution.end.value) == ("ExitStatus", "3")
    assert lasting.run_code("echo $?", context=context).logs.stdout == "3\n"
    lasting.contexts.remove(context)


@pytest.mark.parametrize("code", ["while :; do :; done", "sleep 1000; echo never", "set -e; cat /dev/zero | sleep 99"])
def test_bash_is_interrupted_and_keeps_its_state(lasting: Sandbox, code: str) -> None:
    context = lasting.contexts.create("bash")
    lasting.run_code("kept=1", context=context)
    end = lasting.run_code(code, context=context, timeout_s=0.5).end
    assert isinstance(end, CodeTimedOut)
    assert end.state_kept
    assert lasting.run_code("echo $kept", context=context).logs.stdout == "1\n"
    lasting.contexts.remove(context)


def test_bash_that_exits_is_a_context_that_died(lasting: Sandbox) -> None:
    context = lasting.contexts.create("bash")
    lasting.run_code("lost=1; set -e; true", context=context)
    assert isinstance(lasting.run_code("false; echo after", context=context).end, Ok)
    end = lasting.run_code("echo last words; exit 3", context=context).end
    assert isinstance(end, ContextDied)
    assert "3" in end.reason
    assert lasting.run_code('echo "[$lost]"', context=context).logs.stdout == "[]\n"
    lasting.contexts.remove(context)


def test_languages_that_are_not_there(lasting: Sandbox) -> None:
    with pytest.raises(RequestError, match="no node"):
        lasting.contexts.create("javascript")
    with pytest.raises(RequestError, match="fortran"):
        lasting.contexts.create("fortran")


@pytest.mark.slow
def test_a_kernel_from_a_registry(lasting: Sandbox) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the wheels of this Python are not those of the image's 3.11")
    lasting.files.write("/tmp/kernel.tar", _packed(KERNEL))
    unpacked = lasting.commands.run(
        "mkdir -p ~/.local && python3 -m tarfile -e /tmp/kernel.tar ~/.local", timeout_s=SOON_S
    )
    assert unpacked.ok, unpacked.stderr
    with pytest.raises(RequestError, match=r"no kernel for fortran; there are: .*scheme"):
        lasting.contexts.create("fortran")
    context = lasting.contexts.create("scheme")
    assert context.language == "scheme"
    lasting.run_code("(define n 6)", context=context, timeout_s=SOON_S)
    execution = lasting.run_code('(display "hi") (* n 7)', context=context, timeout_s=SOON_S)
    assert (execution.logs.stdout.strip(), execution.text) == ("hi", "42")
    end = lasting.run_code("(let loop () (loop))", context=context, timeout_s=2.0, grace_s=20.0).end
    assert isinstance(end, CodeTimedOut)
    assert end.state_kept
    assert lasting.run_code("n", context=context, timeout_s=SOON_S).text == "6"
    lasting.contexts.remove(context)


def _packed(distribution: str) -> bytes:
    """*distribution* and what it needs, as they are installed here, in a tar for the user's own site folder."""
    names, seen = [distribution], set()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        while names:
            name = re.sub(r"[-_.]+", "-", names.pop()).lower()
            if name in seen or name in DONE_WITHOUT:
                continue
            seen.add(name)
            found = importlib.metadata.distribution(name)
            names += [_named(need) for need in found.requires or [] if _is_needed(need)]
            for file in found.files or []:
                path = Path(str(file.locate()))
                if path.is_file():  # .pyc too: compiling takes an emulated guest a minute
                    tar.add(path.resolve(), path.resolve().relative_to(Path(sys.prefix).resolve()))
    return buffer.getvalue()


def _named(need: str) -> str:
    return re.split(r"[\s;<>=!~\[(]", need)[0]


def _is_needed(need: str) -> bool:
    if "extra ==" in need.replace("'", '"'):
        return False
    try:
        importlib.metadata.distribution(_named(need))
    except importlib.metadata.PackageNotFoundError:  # for another Python, or another system
        return False
    return True


# -------------------------------------------------------------- python-full


def test_javascript(full: Sandbox) -> None:
    first = full.run_code("const x = 6; console.log('out'); console.error('err'); x * 7", language="javascript")
    assert (first.logs.stdout, first.logs.stderr, first.text, first.end) == ("out\n", "err\n", "42", Ok())
    assert full.run_code("const x = await Promise.resolve(5); x", language="javascript").text == "5"
    for code in ("while (true);", "await new Promise(() => {})", "await 0; while (true);"):
        end = full.run_code(code, language="javascript", timeout_s=0.5, grace_s=20).end  # Node's first takes 3 s
        assert isinstance(end, CodeTimedOut)
        assert end.state_kept
    assert full.run_code("x", language="javascript").text == "5"
    end = full.run_code("process.exit(3)", language="javascript").end
    assert isinstance(end, ContextDied)


def test_what_the_full_image_has(full: Sandbox) -> None:
    assert full.run_code("import scipy.optimize, requests; scipy.optimize.brentq(lambda x: x - 1, 0, 3)").text == "1.0"
    tools = "git --version && curl --version && node --version && pip --version && g++ --version"
    assert full.commands.run(tools, timeout_s=SOON_S).ok


def test_a_python_kernel_beside_the_warm_python(full: Sandbox) -> None:
    began = fair_clock()
    context = full.contexts.create("jupyter:python3")
    assert fair_clock() - began < SOON_S
    assert full.run_code("import sys; sys.version_info[:2]", context=context, timeout_s=SOON_S).text == "(3, 11)"
    assert full.run_code("1/0", context=context, timeout_s=SOON_S).end.name == "ZeroDivisionError"  # type: ignore[union-attr]

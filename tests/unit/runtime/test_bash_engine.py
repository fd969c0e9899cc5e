"""What bash code sees in a context, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from context_bench import ContextBench, Seen, Silent
from tests.fair import fair_clock
from zygote_bench import Bench


@pytest.fixture
def fresh(bench: Bench) -> Iterator[ContextBench]:
    context = ContextBench(bench, "bash")
    assert context.ready["event"] == "ready", context.ready
    yield context
    context.kill()


@pytest.fixture(scope="module")
def bash(bench: Bench) -> Iterator[ContextBench]:
    context = ContextBench(bench, "bash")
    assert context.ready["about"]["language"] == "bash", context.ready
    assert context.ready["about"]["version"][0].isdigit()
    yield context
    context.kill()


def _status(seen: Seen) -> tuple[str, str, str]:
    return seen.kind, seen.end.get("name", ""), seen.end.get("value", "")


def test_what_a_cell_does_stays(bash: ContextBench) -> None:
    set_up = "x=6; export Y=7; f() { echo $((x * Y)); }; cd /usr; alias hi='echo hello'; shopt -s extglob; set -- a b"
    assert bash.run(set_up).end == {"kind": "ok"}
    seen = bash.run("f; pwd; hi; printenv Y; echo $2 $#")
    assert (seen.stdout, seen.stderr) == ("42\n/usr\nhello\n7\nb 2\n", "")


def test_many_lines(bash: ContextBench) -> None:
    code = "for i in 1 2\ndo\n  cat <<END\nline $i\nEND\ndone | tr a-z A-Z\ncase x in\n  x) echo its x ;;\nesac"
    assert bash.run(code).stdout == "LINE 1\nLINE 2\nits x\n"
    assert bash.run("").end == {"kind": "ok"}
    assert bash.run("# only a comment").end == {"kind": "ok"}


def test_streams(bash: ContextBench) -> None:
    seen = bash.run("echo out; echo err >&2; python3 -c 'print(1)'; no-such-command")
    assert (seen.stdout, seen.stderr) == ("out\n1\n", "err\nbash: no-such-command: command not found\n")
    assert _status(seen) == ("error", "ExitStatus", "127")


def test_the_status_is_told_and_kept(bash: ContextBench) -> None:
    assert _status(bash.run("(exit 3)")) == ("error", "ExitStatus", "3")
    assert bash.run("echo $?").stdout == "3\n"
    assert bash.run("echo $?").stdout == "0\n"
    assert _status(bash.run("return 4")) == ("error", "ExitStatus", "4")


@pytest.mark.parametrize("code", ["if", "echo 'x", "for do", "echo a\nfi", "echo $("])
def test_a_syntax_error_is_one(bash: ContextBench, code: str) -> None:
    seen = bash.run(code)
    assert (seen.kind, seen.end["name"]) == ("error", "SyntaxError"), seen
    assert "line" in seen.end["value"]
    assert "/proc" not in seen.end["value"]
    assert bash.run("echo lives").stdout == "lives\n"


def test_nul(bash: ContextBench) -> None:
    assert bash.run("echo a\0b").end["name"] == "SyntaxError"
    assert bash.run(b"echo \xff").end["kind"] == "error"


def test_errexit_ends_the_cell_and_not_the_shell(bash: ContextBench) -> None:
    bash.run("kept=1")
    inner = "set -euo pipefail\nf() { if true; then false | cat; fi; }\necho one\nf\necho two"
    seen = bash.run(inner)
    assert (seen.stdout, seen.stderr) == ("one\n", "")
    assert _status(seen) == ("error", "ExitStatus", "1")
    assert bash.run("echo $? $kept; false; echo on").stdout == "1 1\non\n"
    seen = bash.run("set -e; (false; echo never); echo neither")
    assert (seen.stdout, _status(seen)) == ("", ("error", "ExitStatus", "1"))
    seen = bash.run("set -e; if false; then :; fi; false || true; x=$(false; echo in) ; echo $x")
    assert (seen.stdout, seen.kind) == ("in\n", "ok")
    bash.run("set +u +o pipefail")


def test_unset_variable_ends_the_cell(bash: ContextBench) -> None:
    bash.run("kept=2")
    seen = bash.run("set -u; echo $there_is_no_such; echo never")
    assert seen.stdout == ""
    assert seen.kind == "error"
    assert bash.run("set +u; echo $kept; echo ${none:?gone}; echo never").stdout == "2\n"
    assert bash.run("echo $kept").stdout == "2\n"


@pytest.mark.parametrize(
    "code",
    [
        "while :; do :; done",
        "while :; do sleep 0.01; done",
        "sleep 60; echo never",
        "f() { sleep 60; }; f | cat; echo never",
        "x=$(sleep 60); echo never",
        "read line < <(sleep 60); echo never",
        "wait_for() { while true; do (sleep 5); done; }; wait_for",
        "bash -c 'trap : INT; sleep 60; true'; sleep 60",
    ],
)
def test_interrupt_ends_the_cell_and_keeps_the_state(bash: ContextBench, code: str) -> None:
    bash.run("kept=3; cd /usr")
    bash.order(code)
    bash.interrupt()
    begun = fair_clock()
    seen = bash.read_to_end()
    assert fair_clock() - begun < 3
    assert (seen.end, seen.stdout, seen.stderr) == ({"kind": "interrupted"}, "", "")
    assert bash.run("echo $kept; pwd").stdout == "3\n/usr\n"


def test_interrupts_one_after_the_other(bench: Bench) -> None:
    """About one of a thousand, on a crowded machine, leaves bash silent for good. That context is given up."""
    given_up, done = 0, 0
    while done < 30:
        context = ContextBench(bench, "bash")
        try:
            while done < 30:
                context.order("sleep 60")
                context.interrupt(0.0)
                assert context.read_to_end().kind == "interrupted"
                done += 1
            assert context.run("echo lives").stdout == "lives\n"
        except Silent:
            given_up += 1
            assert given_up == 1
        finally:
            context.kill()


def test_a_job_in_the_background_outlives_the_cell(bash: ContextBench) -> None:
    begun = fair_clock()
    seen = bash.run("sleep 2 & echo begun")
    assert fair_clock() - begun < 2
    assert (seen.stdout, seen.stderr) == ("begun\n", "")
    bash.order("echo sleeps; sleep 60")
    bash.read_something(Seen())
    bash.interrupt(0.1)  # a bash that is interrupted while it forks may lose track of its jobs
    assert bash.read_to_end().kind == "interrupted"
    assert bash.run("wait $!; echo $?").stdout == "0\n"


def test_stdin(bash: ContextBench) -> None:
    assert bash.run('cat; read x; echo "[$x]"').stdout == "[]\n"
    seen = bash.run("read a; read b; echo $b $a; cat", stdin=b"1\n2\nrest")
    assert seen.stdout == "2 1\nrest"
    assert bash.run("cat").stdout == ""


def test_what_a_cell_redirects_ends_with_it(bash: ContextBench) -> None:
    assert bash.run("exec >/dev/null 2>&1 </dev/zero; echo lost").stdout == ""
    seen = bash.run("echo back; echo err >&2; cat; exec 1>&- 2>&- 0<&-")
    assert (seen.stdout, seen.stderr) == ("back\n", "err\n")
    assert bash.run("echo and again; exec 7>/dev/null").stdout == "and again\n"
    assert bash.run("echo >&7 && echo kept").stdout == "kept\n"


def test_a_cell_of_five_megabytes(bash: ContextBench) -> None:
    seen = bash.run("x='" + "y" * 5_000_000 + "'\necho ${#x}")
    assert (seen.stdout, seen.kind) == ("5000000\n", "ok")


def test_traps_of_the_user(fresh: ContextBench) -> None:
    fresh.run("trap 'echo bye' EXIT; trap 'echo debug >/dev/null' DEBUG; trap 'echo failed' ERR")
    assert fresh.run("false; echo on").stdout == "failed\non\n"
    fresh.order("exit 3")
    out = Seen()
    fresh.read_streams(out)
    assert out.stdout == "bye\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [("exit 3", 3), ("exit", 0), ("kill -9 $$", -9), ("kill -SEGV $$", -11), ("exec true", 0), ("exec false", 1)],
)
def test_the_death_of_the_shell_is_the_death_of_the_context(bench: Bench, code: str, status: int) -> None:
    context = ContextBench(bench, "bash")
    context.order(code)
    assert context.wait_death() == status


def test_forged_reports_fool_nobody_for_long(fresh: ContextBench) -> None:
    fresh.run("for f in /proc/$PPID/fd/*; do [ -p $f ] && echo '99 0' >$f; done 2>/dev/null; head -c 10000 /dev/zero")
    assert fresh.run("echo lives").stdout == "lives\n"


def test_what_prompts_say_is_not_seen(fresh: ContextBench) -> None:
    fresh.run("PS1='prompt> '; PS2='more> '; PROMPT_COMMAND='echo prompt >&2'; set -v")
    seen = fresh.run("echo a\necho b")
    assert seen.stdout == "a\nb\n"
    assert "prompt" not in seen.stderr
    assert "printf" not in seen.stderr


def test_completion(bash: ContextBench) -> None:
    bash.run("cd /; variable_of_mine=1; function_of_mine() { :; }")
    assert bash.complete("echo $variable_of") == {"matches": ["$variable_of_mine"], "start": 5, "end": 17}
    assert bash.complete("true; function_of")["matches"] == ["function_of_mine"]
    assert bash.complete("cat /etc/host")["matches"][0].startswith("/etc/host")
    assert bash.complete("cat 'no such;file")["matches"] == ["file"]
    assert bash.complete("echo $(no-such\n'", 16)["matches"] == []


def test_random_is_reseeded_unless_it_was_seeded(bash: ContextBench) -> None:
    one = bash.run("echo $RANDOM $RANDOM", seed="01" * 32).stdout
    assert bash.run("echo $RANDOM $RANDOM", seed="01" * 32).stdout == one
    assert bash.run("echo $RANDOM $RANDOM", seed="02" * 32).stdout != one
    bash.run("RANDOM=5; first=$RANDOM; RANDOM=5")
    assert bash.run("((RANDOM == first)) && echo kept", seed="03" * 32).stdout == "kept\n"


def test_inspection(bash: ContextBench) -> None:
    bash.run("function_seen() { echo here; }")
    assert "Change the" in bash.inspect("cd /tmp", 1)["data"]["text/plain"]
    assert "echo here" in bash.inspect("true; function_seen")["data"]["text/plain"]
    assert "/ls" in bash.inspect("ls")["data"]["text/plain"]
    for nothing in ("no-such-command", "$(no-such", "", "'"):
        assert bash.inspect(nothing) == {"found": False, "data": {}}, nothing
    assert bash.run("echo still").stdout == "still\n"

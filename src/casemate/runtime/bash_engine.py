"""Bash: one living shell for each context.

It is an interactive one, because only that comes back to its prompt when it is interrupted. Its commands come over
descriptor 0 and are ours alone; a cell is a file that it sources, with descriptors 0, 1 and 2 of its own, so that
neither code that reads its input nor `exec >/dev/null` reaches beyond the cell. At rest its descriptor 2 is /dev/null:
the prompts go there. What the shell opens for us, it opens below this process's /proc/PID/fd: no cell can close that.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from typing import Any, Dict, Optional, Tuple

from .companion import READY_S, Companion, Interrupts, error
from .engines import EngineMissing, Limits, Show

_STDOUT, _STDERR = 60, 61
_LINE_LIMIT = 4096
_INSIST_S = 0.3  # doubled from one time to the next
_INSIST_AT_MOST_S = 5.0
_COMPLETE_S = 10.0
_MATCHES_LIMIT = 1000
_WORD_BEFORE, _WORD_AFTER = re.compile(r"[\w./:\[-]*$"), re.compile(r"[\w./:\[-]*")

# A failure under `set -e` would end an interactive shell, and all its variables with it. The ERR trap comes first: it
# tells the status and interrupts the shell, which so ends the cell alone. Subshells end as they always do.
_SETTINGS = """\
set +o history +H +m; unset HISTFILE; shopt -u checkwinsize; set -E; \
trap 'case $-:$BASHPID in *e*:$$) \\builtin printf "failed %s\\n" "$?" >{reports}; set +e; kill -INT $$;; esac' ERR; \
\\builtin printf 'ready %s\\n' "$BASH_VERSION" >{reports}
"""

# Where bash 5.2 meets the end of the code within one of these, it reads memory that it has freed, and may end. So the
# code is first given to another one that only reads it. Source: valgrind of bash 5.2.15 that sources "echo $(".
_PERILOUS = re.compile(r"[$<>]\(|`|\$\{")


class BashEngine:
    def __init__(self, language: str) -> None:
        path = shutil.which("bash")
        if path is None:
            raise EngineMissing("there is no bash in this image")
        self._interrupts = Interrupts()
        self._reports, self._report_end = os.pipe()
        os.set_blocking(self._reports, False)
        self._unread = b""
        self._code, self._status = os.memfd_create("cell"), os.memfd_create("status")
        self._serial = 0
        self._seeded = False
        self._shell, self._companion = self._start(path)
        self._say(_SETTINGS.format(reports=self._path(self._report_end)))
        self.about = {"language": "bash", "version": self._wait_ready()}

    def _start(self, path: str) -> Tuple[socket.socket, Companion]:
        ours, theirs = socket.socketpair()
        for fd, place in ((1, _STDOUT), (2, _STDERR)):
            os.dup2(fd, place)
        try:
            argv = [path, "--noprofile", "--norc", "--noediting", "-i"]
            companion = Companion(argv, (_STDOUT, _STDERR), stdin=theirs, stderr=subprocess.DEVNULL)
        finally:
            theirs.close()
            os.close(_STDOUT)
            os.close(_STDERR)
        return ours, companion

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            word, _, rest = self._report(deadline - time.monotonic()).partition(" ")
            if word == "ready":
                return rest
        self.close()
        raise EngineMissing("bash did not answer within %d s" % READY_S)

    def run(self, code: str, stdin: Optional[int], show: Show, limits: Limits) -> Dict[str, Any]:
        if "\0" in code:
            return error("SyntaxError", "the code contains a NUL, which no command of bash can hold")
        if _PERILOUS.search(code):
            problem = self._syntax_error(code)
            if problem and "unexpected EOF" in problem:
                os.write(2, problem.encode() + b"\n")
                _write_file(self._status, "return 2")
                return error("SyntaxError", problem)
        self._seeded = self._seeded or re.search(r"\bRANDOM=", code) is not None
        _write_file(self._code, code)
        self._serial += 1
        with self._interrupts:
            self._begin(stdin)
            status, failed = self._finish(stdin)
            interrupted = self._interrupts.count > 0
        _write_file(self._status, "return %d" % status)
        if interrupted:
            return {"kind": "interrupted"}
        if status == 0:
            return {"kind": "ok"}
        problem = None if failed or status > 2 else self._syntax_error(code)
        return error("SyntaxError", problem) if problem else error("ExitStatus", str(status))

    def _begin(self, stdin: Optional[int]) -> None:
        """Said again where the shell does not say that it has begun: an interrupt of before may have taken it."""
        self._say(
            "[[ ${_casemate_cell-} == %d ]] || { _casemate_cell=%d; \\builtin printf 'begun %d\\n' >%s; "
            "\\. %s; \\. %s <%s >&%d 2>&%d; }\n"
            % (
                *(self._serial,) * 3,
                self._path(self._report_end),
                self._path(self._status),
                self._path(self._code),
                "/dev/null" if stdin is None else self._path(stdin),
                _STDOUT,
                _STDERR,
            )
        )
        self._ask()

    def _ask(self) -> None:
        """For the report. It is a line of its own: what an interrupt takes from the shell is the line it is at."""
        self._say("\\builtin printf '%d %%s\\n' \"$?\" >%s; set +e\n" % (self._serial, self._path(self._report_end)))

    def _finish(self, stdin: Optional[int]) -> Tuple[int, bool]:
        """The cell's status, and whether `set -e` ended it."""
        failed: Optional[int] = None
        begun, patience_s = False, _INSIST_S
        while True:
            insisting = self._interrupts.count > 0
            word, _, rest = self._report(None if begun and not insisting else patience_s).partition(" ")
            if word == "failed" and rest.isdigit():
                failed = int(rest)
            elif word == "begun" and rest == str(self._serial):
                begun = True
            elif word == str(self._serial) and rest.isdigit() and (begun or insisting):
                return (int(rest), False) if failed is None else (failed, True)
            elif word == "" and (insisting or not begun):
                if insisting:
                    self._insist()
                else:
                    self._begin(stdin)
                patience_s = min(patience_s * 2, _INSIST_AT_MOST_S)

    def _insist(self) -> None:
        """Interrupt once more: a program that survived the first is followed by the next line of the cell.

        The question for the report may have been what the first took from the shell: it is put again.
        """
        os.killpg(os.getpgrp(), signal.SIGINT)
        self._interrupts.wait(timeout_s=_INSIST_S / 10)
        self._ask()

    def _report(self, timeout_s: Optional[float]) -> str:
        """The next line of the shell; empty after *timeout_s* or an interrupt. When the shell has died, so do we."""
        if b"\n" not in self._unread:
            ready = self._interrupts.wait(self._reports, self._companion.death, timeout_s=timeout_s)
            if self._reports in ready:
                self._unread = (self._unread + os.read(self._reports, _LINE_LIMIT))[-_LINE_LIMIT:]
            elif self._companion.death in ready:
                self._companion.follow()
        line, found, rest = self._unread.partition(b"\n")
        if not found:
            return ""
        self._unread = rest
        return line.decode("utf-8", "replace")

    def _say(self, line: str) -> None:
        try:
            self._shell.sendall(line.encode())
        except OSError:  # it has just died, or `exec` made it something else that closed its input
            if self._interrupts.wait(self._companion.death, timeout_s=READY_S):
                self._companion.follow()
            raise

    def _syntax_error(self, code: str) -> Optional[str]:
        """What bash says when it only reads *code*; None when it can read it."""
        argv = ["bash", "--norc", "-O", "extglob", "-n"]
        tried = subprocess.run(argv, input=code.encode(), capture_output=True, timeout=READY_S, check=False)
        said = tried.stderr.decode("utf-8", "replace").strip()
        return said if tried.returncode else None

    def complete(self, code: str, cursor: int) -> Dict[str, Any]:
        before = code[:cursor]
        word = re.split(r"[\s;|&()<>=]", before)[-1]
        start = cursor - len(word)
        is_command = re.search(r"(^|[;|&(\n])\s*$", before[:start]) is not None
        kind, prefix = ("-v", "$") if word.startswith("$") else ("-c" if is_command and "/" not in word else "-f", "")
        words = shlex.quote(word[len(prefix) :]).replace("\n", "")
        said = self._answer_of("compgen %s -- %s" % (kind, words))
        found = sorted({prefix + line for line in said.splitlines()})
        return {"matches": found[:_MATCHES_LIMIT], "start": start, "end": cursor}

    def inspect(self, code: str, cursor: int, detail: int) -> Dict[str, Any]:
        """A builtin's help; of all other commands what they are."""
        before, after = _WORD_BEFORE.search(code, 0, cursor), _WORD_AFTER.match(code, cursor)
        word = (before[0] if before else "") + (after[0] if after else "")
        if not word:
            return {"found": False, "data": {}}
        ways = ("help", "type") if detail == 0 else ("type", "help")
        text = self._answer_of(
            "{ %s; } 2>/dev/null" % " || ".join("\\builtin %s -- %s" % (way, shlex.quote(word)) for way in ways)
        )
        return {"found": bool(text), "data": {"text/plain": text} if text else {}}

    def _answer_of(self, command: str) -> str:
        """What *command*, a line that ends by itself and changes nothing, writes."""
        answer = os.memfd_create("answer")
        try:
            with self._interrupts:
                self._serial += 1
                self._say("%s >%s\n" % (command, self._path(answer)))
                self._ask()
                deadline = time.monotonic() + _COMPLETE_S
                while time.monotonic() < deadline and self._report(_COMPLETE_S).split(" ")[0] != str(self._serial):
                    continue
            with open(self._path(answer), encoding="utf-8", errors="replace") as file:
                return file.read()
        finally:
            os.close(answer)

    def reseed(self, entropy: bytes) -> None:
        """$RANDOM alone: all else in bash asks the kernel. Whoever assigned to it in a cell keeps his seed."""
        if not self._seeded:
            self._say("RANDOM=%d\n" % int.from_bytes(entropy[:4], "little"))

    def close(self) -> None:
        self._companion.end()
        self._shell.close()

    def _path(self, fd: int) -> str:
        return "/proc/%d/fd/%d" % (os.getpid(), fd)


def _write_file(fd: int, text: str) -> None:
    os.ftruncate(fd, 0)
    with open(fd, "wb", closefd=False) as file:
        file.seek(0)
        file.write(text.encode())

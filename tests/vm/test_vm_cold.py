"""A suspended sandbox booted from its disk, and what becomes of it then."""

from __future__ import annotations

import pytest
from vm_world import Daemon

from casemate.sdk import Sandbox

pytestmark = pytest.mark.vm
COUNT = "nohup sh -c 'while :; do date +%s%N > /tmp/at; sleep 0.05; done' >/dev/null 2>&1 &"


def said(sandbox: Sandbox, script: str) -> str:
    return sandbox.commands.run(["sh", "-c", script], check=True).stdout.strip()


@pytest.mark.slow
def test_booted_from_its_disk_it_has_its_files_and_lives_on(daemon: Daemon, no_trace: None) -> None:
    with Sandbox.create(env={"WHO": "me"}, on_idle="keep") as sandbox:
        said(sandbox, f"{COUNT} echo kept > kept; echo gone > /tmp/gone")
        sandbox.suspend()
        sandbox.resume(cold=True)
        assert said(sandbox, 'cat kept; cat /tmp/gone /tmp/at 2>/dev/null; echo "$WHO"') == "kept\nme"
        assert sandbox.run_code("x = 41; x + 1").text == "42"
        said(sandbox, f"{COUNT} echo more > more")
        # Its memory is its own now: all of it is kept, and later only what differs from that
        first = sandbox.suspend()
        sandbox.resume()
        assert said(sandbox, "cat kept more") == "kept\nmore"
        assert sandbox.run_code("x").text == "41"
        assert said(sandbox, "cat /tmp/at; sleep 0.3; cat /tmp/at").split()[0] != said(sandbox, "cat /tmp/at")
        second = sandbox.suspend()
        assert second.dirty_bytes < first.dirty_bytes / 2
        sandbox.resume()
        assert sandbox.run_code("x").text == "41"

"""Which ports listen, from the kernel's own table; here this process's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from casemate.guest.listening import MOST, listening
from casemate.guest.marked import Marked


def test_the_kernels_table_is_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as four, socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        found = {(row["port"], row["address"]): row["uid"] for row in listening()}
        assert found[four.getsockname()[1], "127.0.0.1"] == os.getuid()
        assert not_listening.getsockname()[1] not in [port for port, _ in found]


def test_both_families(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rest = "0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n"
    (tmp_path / "tcp").write_text(head + "   0: 0100007F:1F90 00000000:0000 " + rest)
    (tmp_path / "tcp6").write_text(head + f"   0: {'0' * 24}01000000:0050 {'0' * 32}:0000 " + rest)
    assert listening(str(tmp_path)) == [
        {"port": 80, "address": "::1", "uid": 1000},
        {"port": 8080, "address": "127.0.0.1", "uid": 1000},
    ]
    (tmp_path / "tcp6").unlink()
    row = "   0: 0100007F:{:04X} 00000000:0000 " + rest
    (tmp_path / "tcp").write_text(head + "".join(row.format(n) for n in range(1, 2000)))
    assert len(listening(str(tmp_path))) == MOST


def test_the_agents_lines_are_marked(tmp_path: Path) -> None:
    with (tmp_path / "console").open("w") as file:
        marked = Marked(file)
        print("one", file=marked)
        marked.write("two\nthr")
        marked.write("ee\n")
        marked.flush()
    assert (tmp_path / "console").read_text() == "".join(
        f"casemate-agent: {word}\n" for word in ("one", "two", "three")
    )

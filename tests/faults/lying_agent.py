"""A home whose agent lies when it is told to: our own, with a few lines of it changed before it was packed."""

from __future__ import annotations

from pathlib import Path

from tests.vm.vm_world import sources

# An exec of ["lie", base64, times] is accepted and then answered with those bytes; ["lie-still"] stops the agent.
# A HELLO with the variable LIE is answered with a lie, and so is each after an exec of ["lie-later", lie].
_ON_OPENED = """
    def _on_opened(self, event: wire.Opened) -> None:
        argv = event.params.get("argv") or [""]
        if argv[0] == "lie-still":
            import time

            time.sleep(3600)
        elif argv[0] == "lie-later":
            self._later = argv[1]
            self.connection.deny(event.channel, "exec-refused", message="later")
        elif argv[0] == "lie":
            self.connection.accept(event.channel, {"exec_id": "e", "pid": 2})
            self._lie(event.channel, argv)
        else:
            self._on_opened_honestly(event)

    def _lie(self, channel: int, argv: list[str]) -> None:
        import binascii

        said = binascii.a2b_base64(argv[1]).replace(bytes.fromhex("7e57c0de"), channel.to_bytes(4, "big"))
        self.connection._control.extend([said] * int(argv[2]))

    def _on_opened_honestly(self, event: wire.Opened) -> None:
"""
_READY = """
        lie = hello.env.get("LIE") or getattr(self, "_later", None)
        if lie == "proof":
            ready["proof"] = "0" * 64
        elif lie == "clock":
            ready["wall_clock_ns"] -= 10**12
        elif lie == "another boot":
            ready["boot_id"] = "00000000-0000-4000-8000-000000000000"
        elif lie == "nothing":
            ready = {}
        elif lie == "silence":
            return
        self.connection.ready(ready)
        if lie == "twice":
            self.connection.ready(ready)
"""


def sabotaged(folder: Path) -> Path:
    """Where to find the package with the agent that lies; for PYTHONPATH."""
    package = sources(folder)
    _replace(package / "guest/server.py", "    def _on_opened(self, event: wire.Opened) -> None:\n", _ON_OPENED[1:])
    applied = "        self.connection.ready(ready)\n"
    _replace(package / "guest/server.py", applied, _READY[1:])
    return folder


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has changed: {old!r} is there {text.count(old)} times"
    path.write_text(text.replace(old, new))

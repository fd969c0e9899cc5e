"""The floor of a restore with Firecracker: the same calls by hand. Imports nothing of Casemate.

    python bench/firecracker.py '{"memory": …, "state": …, "firecracker": …, "jailer": …}'      as root

Reads names of acts, a line each, and answers with one of JSON: how long it took until the guest said something, and
of that until the API took a connection.
``bare``: Firecracker in a folder of its own by chroot, nothing else around it. ``jailed``: by its own jailer.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 20.0
UID = 1_999_999_999
CALLS = (
    ("PUT", "/metrics", {"metrics_path": "/exchange/metrics"}),
    (
        "PUT",
        "/snapshot/load",
        {
            "snapshot_path": "/state",
            "mem_backend": {"backend_type": "File", "backend_path": "/memory"},
            "track_dirty_pages": True,
            "resume_vm": False,
        },
    ),
    ("PATCH", "/vm", {"state": "Resumed"}),
)
RENAMED = (1, 13, 0)  # older ones call the tracking by another name


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """As soon as somebody listens."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                return self.sock.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                self.sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.0005)


def prepare(root: Path, files: dict[str, str]) -> None:
    """What the machine needs, as hard links; the exchange folder, where it makes its sockets."""
    for name in ("memory", "state"):
        os.link(files[name], root / name)
        (root / name).chmod(0o644)
    (root / "exchange").mkdir()
    (root / "exchange").chmod(0o777)
    os.mkfifo(root / "exchange/metrics")
    (root / "exchange/metrics").chmod(0o666)


def bare(base: Path, files: dict[str, str]) -> dict[str, float]:
    root = base / "root"
    (root / "dev").mkdir(parents=True)
    shutil.copy(files["firecracker"], root / "firecracker")
    os.mknod(root / "dev/kvm", 0o20666, os.makedev(10, 232))
    prepare(root, files)
    began = time.perf_counter()
    argv = ["/firecracker", "--api-sock", "/exchange/api.sock", "--level", "Error"]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, preexec_fn=lambda: (os.chroot(root), os.chdir("/"))
    )
    return until_it_runs(process, root, began, files)


def jailed(base: Path, files: dict[str, str]) -> dict[str, float]:
    root = base / "firecracker/floor/root"
    root.mkdir(parents=True)
    prepare(root, files)
    began = time.perf_counter()
    argv = [files["jailer"], "--id", "floor", "--exec-file", files["firecracker"], "--uid", str(UID)]
    argv += ["--gid", str(UID), "--chroot-base-dir", str(base)]
    argv += ["--", "--api-sock", "/exchange/api.sock", "--level", "Error"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return until_it_runs(process, root, began, files)


def until_it_runs(
    process: subprocess.Popen[bytes], root: Path, began: float, files: dict[str, str]
) -> dict[str, float]:
    metrics = os.open(root / "exchange/metrics", os.O_RDWR | os.O_NONBLOCK)
    try:
        api = Connection(str(root / "exchange/api.sock"))
        api.connect()
        started = time.perf_counter()
        old = tuple(map(int, files["version"].split("."))) < RENAMED
        for method, path, body in CALLS:
            text = json.dumps(body)
            if old:
                text = text.replace("track_dirty_pages", "enable_diff_snapshots")
            api.request(method, path, text)
            answer = api.getresponse()
            said = answer.read()
            if answer.status >= 300:
                raise OSError(f"{path}: {said.decode()}")
        assert process.stdout
        while b"x" not in process.stdout.read1(65_536):
            pass
        runs = time.perf_counter()
        api.close()
        return {"ms": (runs - began) * 1e3, "started_ms": (started - began) * 1e3}
    finally:
        os.close(metrics)
        process.send_signal(signal.SIGKILL)
        process.wait()


def main() -> None:
    files = json.loads(sys.argv[1])
    acts = {"bare": bare, "jailed": jailed}
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="casemate-floor-", dir=Path(files["memory"]).parent) as folder:
            try:
                answer: dict[str, object] = {**acts[line.strip()](Path(folder), files)}
            except (OSError, KeyError, http.client.HTTPException) as error:
                answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

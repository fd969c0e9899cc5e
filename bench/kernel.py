"""The price of isolation: the same cells through jupyter_client and ipykernel on the bare host, with no VM at all.

``python3 bench/kernel.py CELLS`` (JSON: act → code) reads the name of an act per line from stdin and answers each
with a line of JSON, ``{"ms": …}`` or ``{"error": …}``. It wants what the extra ``bench`` installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

DEADLINE_S = 60.0
CELLS = json.loads(sys.argv[1])  # as the product's side runs them
Kernel = tuple[KernelManager, BlockingKernelClient]


def run(client: BlockingKernelClient, code: str, *, first_line: bool = False) -> float:
    """Milliseconds until the kernel is idle again or, with *first_line*, until the first text arrived."""
    at = 0.0
    began = time.perf_counter()

    def hear(message: dict[str, dict[str, str]]) -> None:
        nonlocal at
        kind = str(message["header"]["msg_type"])
        if kind == "stream" and not at:
            at = time.perf_counter()
        if kind == "error":
            raise RuntimeError(str(message["content"]["evalue"]))

    client.execute_interactive(code, timeout=DEADLINE_S, output_hook=hear)
    return ((at if first_line else time.perf_counter()) - began) * 1000


def with_new_kernel(act: Callable[[BlockingKernelClient], float]) -> float:
    manager, client = start_new_kernel(startup_timeout=DEADLINE_S, stderr=subprocess.DEVNULL)
    try:
        return act(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def new_context() -> float:
    began = time.perf_counter()
    return with_new_kernel(lambda _: (time.perf_counter() - began) * 1000)


def main() -> None:
    manager, warm = start_new_kernel(startup_timeout=DEADLINE_S, stderr=subprocess.DEVNULL)
    try:
        for code in CELLS.values():
            run(warm, code)
        for line in sys.stdin:
            name = line.strip()
            try:
                if name == "new_context":
                    ms = new_context()
                elif name == "first_describe":
                    ms = with_new_kernel(lambda client: run(client, CELLS["first_describe"]))
                else:
                    ms = run(warm, CELLS[name], first_line=name == "line_to_callback")
                answer: dict[str, object] = {"ms": ms}
            except (OSError, RuntimeError, KeyError, TimeoutError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
    finally:
        warm.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()

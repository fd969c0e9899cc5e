"""The code interpreter: cells in a warm context, a fresh clone, one from a pool; beside a kernel on the bare host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from casemate.bench.acts import timed
from casemate.bench.floor import Floor, open_kernel
from casemate.bench.pools import open_pool, wait_full
from casemate.bench.rows import Samples, percentile, row
from casemate.errors import CasemateError, GuestError
from casemate.sdk import Client, Sandbox

CELLS = {
    "run_code_1plus1": "1 + 1",
    "line_to_callback": "print('a line')",
    "first_describe": """
import pandas as pd
pd.DataFrame({"a": range(100), "b": [n ** 0.5 for n in range(100)]}).describe()
""",
    "plot_png": """
import matplotlib.pyplot as plt
plt.plot([n ** 2 for n in range(50)])
plt.title("squares")
plt.show()
""",
}
Tell = Callable[[str], None]


def cell_rows(client: Client, floor: Floor, n: int, few: int, ready: int, tell: Tell) -> list[dict[str, Any]]:
    """*n* of what is quick, *few* of what needs a fresh clone or context; claims are made from *ready*."""
    with open_kernel(CELLS) as kernel:
        with Sandbox.create(client=client, attached=True) as warm:
            for name in ("run_code_1plus1", "line_to_callback", "plot_png"):
                run(warm, name)
            quick = [
                _row("run_code_1plus1", lambda: run(warm, "run_code_1plus1"), kernel, n, tell, floor),
                _row("line_to_callback", lambda: first_line(warm), kernel, n, tell),
                _row("plot_png", lambda: run(warm, "plot_png"), kernel, few, tell),
                _row("new_context", lambda: new_context(warm), kernel, few, tell),
            ]
        rest = [_row("first_describe", lambda: first_cell(client, "first_describe"), kernel, few, tell)]
    return [*quick, *rest, claim_to_first_cell(client, few, ready)]


def run(sandbox: Sandbox, name: str) -> float:
    def act() -> None:
        execution = sandbox.run_code(CELLS[name])
        if execution.error is not None:
            raise GuestError(f"{name} gave {execution.error.name}: {execution.error.value}")
        if name == "run_code_1plus1" and execution.text != "2":
            raise GuestError(f"1 + 1 gave {execution.text!r}")
        if name == "plot_png" and not any(result.png for result in execution.results):
            raise GuestError("no picture came")

    return timed(act)


def first_line(sandbox: Sandbox) -> float:
    """From asking for a ``print`` until its line is at the callback: an upper bound of what the line alone took."""
    at: list[float] = []
    began = time.perf_counter()
    sandbox.run_code(CELLS["line_to_callback"], on_stdout=lambda _: at.append(time.perf_counter()))
    if not at:
        raise GuestError("no line came")
    return (at[0] - began) * 1000


def new_context(sandbox: Sandbox) -> float:
    made = []
    try:
        return timed(lambda: made.append(sandbox.contexts.create()))
    finally:
        for context in made:
            sandbox.contexts.remove(context)


def first_cell(client: Client, name: str) -> float:
    """In a clone that has just answered; the start of the clone is not counted."""
    with Sandbox.create(client=client) as sandbox:
        return run(sandbox, name)


def claim_to_first_cell(client: Client, n: int, ready: int) -> dict[str, Any]:
    """From the create, met by a pool, to the answer of ``1 + 1``."""
    product = Samples()
    with open_pool(client, ready):
        for _ in range(n):
            made: list[Sandbox] = []

            def claim_and_run(made: list[Sandbox] = made) -> None:
                made.append(Sandbox.create(client=client))
                run(made[0], "run_code_1plus1")

            try:
                wait_full(client, ready)
                product.ms.append(timed(claim_and_run))
            except CasemateError as error:
                product.errors.append(f"{error.code}: {error.message}")
            finally:
                for sandbox in made:
                    sandbox.kill()
        hits = client.pools.get("python")["hits"]
    return row("pool_claim_to_first_cell", product, Samples()) | {"hits": hits}


def _row(
    name: str, act: Callable[[], float], kernel: Floor, n: int, tell: Tell, floor: Floor | None = None
) -> dict[str, Any]:
    """The product, a kernel on the bare host, and the floor where there is one, in turn."""
    product, beside, beneath = Samples(), Samples(), Samples()
    for number in range(n):
        tell(f"{name} {number + 1}/{n}")
        try:
            product.ms.append(act())
        except CasemateError as error:
            product.errors.append(f"{error.code}: {error.message}")
        kernel.measure(name, beside)
        if floor is not None:
            floor.measure(name, beneath)
    bare = percentile(beside.ms, 0.5)
    more: dict[str, Any] = {"bare_host_kernel_p50_ms": None if bare is None else round(bare, 2)}
    if beside.errors:
        more["bare_host_kernel_failure"] = beside.errors[0]
    return row(name, product, beneath) | more

"""``casemate bench``: the figures, each beside its floor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class VmmName(StrEnum):
    FIRECRACKER = "firecracker"


def bench(
    json_path: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows there too.")] = None,
    heavy: Annotated[
        bool, typer.Option("--heavy", help="Also 100 at once and 200 ready ones: minutes, and 20 GiB of memory.")
    ] = False,
    vmm: Annotated[
        VmmName | None, typer.Option("--vmm", help="The restore of a tiny guest in that VMM alone, as root.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How often each is measured.")] = 100,
) -> None:
    """Measure sandboxes, each figure beside its floor.

    The floor is the same act done by hand on the same VMM in the same jail, in the same run.

    Example:
      casemate bench --n 20 --json bench.json
    """
    from casemate.bench import run_bench, run_vmm_bench

    if vmm is not None:
        run_vmm_bench(n, json_path)
    else:
        run_bench(n, json_path, heavy)

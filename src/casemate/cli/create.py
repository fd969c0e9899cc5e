"""``casemate create``: a sandbox that stays until it is killed, idles or is old enough."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from casemate.cli import options


class OnIdle(StrEnum):
    KILL = "kill"
    SUSPEND = "suspend"
    KEEP = "keep"


def create(
    image: Annotated[str, typer.Option("--image", help="What it starts from.")] = "python",
    name: Annotated[str | None, typer.Option("--name", help="To call it by; unique among the live ones.")] = None,
    memory_mib: Annotated[int | None, typer.Option("--memory", metavar="MIB", help="The guest's memory.")] = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", metavar="N", help="The guest's processors.")] = None,
    disk_mib: Annotated[int | None, typer.Option("--disk", metavar="MIB", help="Its writable disk.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="Set a variable; K: pass ours.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="A note on it.")] = None,
    max_duration_s: Annotated[
        float | None, typer.Option("--max-duration", metavar="S", help="End it after S seconds.")
    ] = None,
    idle_timeout_s: Annotated[
        float, typer.Option("--idle-timeout", metavar="S", help="It idles after S seconds without work; 0: never.")
    ] = 900,
    on_idle: Annotated[OnIdle, typer.Option("--on-idle", help="What becomes of it then.")] = OnIdle.KILL,
    park_after_s: Annotated[
        float, typer.Option("--park-after", metavar="S", help="Freeze it after S seconds without work; 0: never.")
    ] = 5,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume/--no-auto-resume", help="The next call resumes it when it is suspended.")
    ] = True,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build a snapshot that is missing.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a sandbox and print its id.

    Example:
      id=$(casemate create --name work) && casemate exec work -- python3 -V && casemate kill work
    """
    variables, labels = options.env_of(env or []), options.labels_of(label or [])
    from casemate.cli.progress import first_use
    from casemate.sdk import Sandbox

    with first_use() as tell:
        sandbox = Sandbox.create(
            image,
            name=name,
            memory_mib=memory_mib,
            vcpus=vcpus,
            disk_mib=disk_mib,
            env=variables,
            labels=labels,
            max_duration_s=max_duration_s,
            idle_timeout_s=idle_timeout_s or None,
            on_idle=on_idle.value,
            park_after_s=park_after_s or None,
            auto_resume=auto_resume,
            build=build,
            progress=tell,
        )
    sandbox.close()
    print(json.dumps(dict(sandbox.info.raw)) if as_json else sandbox.id)

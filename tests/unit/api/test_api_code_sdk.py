"""run_code of both SDKs and the WebSocket, over the real app and a guest of this process."""

import base64
import json

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from api_world import until

from casemate import errors
from casemate.sdk import (
    AsyncClient,
    AsyncSandbox,
    Client,
    CodeOutOfMemory,
    CodeTimedOut,
    ContextDied,
    FileChange,
    Inspection,
    Interrupted,
    Ok,
    Raised,
    Result,
    Sandbox,
    SandboxDied,
)
from casemate.sdk._async.code import AsyncCode, AsyncContexts, Sinks
from casemate.sdk._sync.code import Code, Contexts
from casemate.sdk._sync.code import Sinks as SyncSinks

PNG = base64.b64encode(b"\x89PNG").decode()
TABLE = {"columns": [{"name": "a", "type": "int64"}], "rows": [[1], [2]], "shape": [3000, 1]}


def bundle(**more):
    return json.dumps({"type": "display", "data": {}, **more})


async def code_of(world, client):
    return AsyncCode(client, f"/v1/sandboxes/{await world.create()}")


def body(code, **more):
    return {"code": code, "context": "default", **more}


def test_an_execution_has_all_of_it(serve):
    async def scenario(world):
        seen = []

        async def on_result(result: Result) -> None:
            await anyio.lowlevel.checkpoint()
            seen.append(result.type)

        async with AsyncClient(f"unix://{world.path}") as client:
            code = await code_of(world, client)
            lines = [
                "out hello",
                "result " + bundle(data={"image/png": PNG, "application/vnd.casemate.table+json": TABLE}),
                "result " + bundle(data={"text/plain": "10 %"}, display_id="bar"),
                "result " + bundle(data={"text/plain": "90 %"}, display_id="bar", update=True),
                "err there",
                "result {",
                "6*7",
            ]
            sinks = Sinks(lambda data: seen.append(data), seen.append, on_result)
            execution = await code.run(body("\n".join(lines)), sinks)
            assert seen == [b"hello\n", "display", "display", "display", b"there\n", "result"]
            assert (execution.end, execution.error, execution.ok, execution.text) == (Ok(), None, True, "6*7")
            first, bar, _ = execution.results
            assert (first.png, first.jpeg, first.text, bar.text) == (b"\x89PNG", None, None, "90 %")
            assert first.table is not None
            assert (first.table.columns[0].type, first.table.rows, first.table.shape) == (
                "int64",
                [[1], [2]],
                (3000, 1),
            )
            assert (execution.logs.stdout, execution.logs.stderr) == ("hello\n", "there\n")
            assert execution.files_changed == (FileChange("/home/user/a", "created"),)
            assert (execution.left_out.results, execution.truncated_bytes) == (1, 0)
            assert (execution.execution_count, execution.context, len(execution.cell_id)) == (1, "default", 16)

    serve(scenario)


@pytest.mark.parametrize(
    ("code", "end", "name"),
    [
        ("1/0", Raised("ZeroDivisionError", "division", "tb"), "ZeroDivisionError"),
        ("die", ContextDied("exited with 3"), "ContextDied"),
        ("memory", CodeOutOfMemory(), "OutOfMemory"),
        ("hang", CodeTimedOut(0.2, state_kept=True), "TimedOut"),
    ],
)
def test_each_end_has_its_type(serve, code, end, name):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            execution = await (await code_of(world, client)).run(body(code, timeout_s=0.2), Sinks())
            assert (execution.end, execution.ok) == (end, False)
            assert execution.error is not None
            assert execution.error.name == name

    serve(scenario)


@pytest.mark.parametrize("lie", [False, True])
def test_the_end_of_the_sandbox_is_the_cells(serve, lie):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            sandbox = await world.create()
            code = AsyncCode(client, f"/v1/sandboxes/{sandbox}")

            async def kill(_data: bytes) -> None:
                if not lie:
                    await world.client.delete(f"/v1/sandboxes/{sandbox}")

            execution = await code.run(body("out begun\nlie" if lie else "out begun\nhang"), Sinks(kill))
            assert isinstance(execution.end, SandboxDied)
            assert execution.end.code == ("protocol-violation" if lie else "killed")
            assert execution.logs.stdout == "begun\n"

    serve(scenario)


def test_a_cell_the_agent_lets_go_of_is_an_error_and_the_sandbox_lives(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            code = await code_of(world, client)
            with pytest.raises(errors.GuestError, match="let go of cell"):
                await code.run(body("let-go"), Sinks())
            assert (await code.run(body("x"), Sinks())).ok

    serve(scenario)


def test_contexts(serve):
    async def scenario(world):
        sandbox = await world.create()
        async with AsyncClient(f"unix://{world.path}") as client:
            contexts = AsyncContexts(client, f"/v1/sandboxes/{sandbox}")
            code = AsyncCode(client, f"/v1/sandboxes/{sandbox}")
            made = await contexts.create("bash", cwd="/tmp", env={"A": "b"})
            assert (made.language, made.cwd, made.state, made.pid) == ("bash", "/tmp", "idle", 7)
            assert world.guest(sandbox).code.contexts[made.context_id].env == {"A": "b"}
            assert await contexts.list() == [made]
            await code.run(body("x", context=made.context_id), Sinks())
            assert [found.execution_count for found in await contexts.list()] == [1]
            assert (await contexts.restart(made)).execution_count == 0
            completion = await contexts.complete("pri", context=made)
            assert (completion.matches, completion.start, completion.end) == (("print", "property"), 0, 3)
            assert await contexts.inspect("print", context=made) == Inspection(True, {"text/plain": "print(...)"})
            with pytest.raises(errors.InvalidSpec, match="detail"):
                await contexts.inspect("print", context=made, detail=2)
            with pytest.raises(errors.InvalidSpec, match="cursor"):
                await contexts.inspect("print", 6, context=made)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(code.run, body("hang", context=made.context_id), Sinks())
                await until(lambda: world.guest(sandbox).code.contexts[made.context_id].running)
                with pytest.raises(errors.StateConflict, match="did not answer"):
                    await contexts.complete("pri", context=made)
                await contexts.interrupt(made)
            assert await contexts.of_language("bash") == await contexts.of_language("bash") != made.context_id
            kept = await contexts.of_language("bash")
            await contexts.remove(kept)
            assert await contexts.of_language("bash") != kept
            assert await contexts.of_language("python") == "default"
            before, others = len(await contexts.list()), AsyncContexts(client, f"/v1/sandboxes/{sandbox}")
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(others.of_language, "bash")
            assert len(await contexts.list()) == before + 1
            await contexts.remove(made)
            with pytest.raises(errors.NotFound):
                await contexts.interrupt(made)
            with pytest.raises(errors.NotSupported):
                await contexts.create("cobol")
            with pytest.raises(errors.ExecRefused):
                await contexts.create(cwd="/missing")
            with pytest.raises(errors.InvalidSpec):
                await contexts.create(env={"a=b": "c"})
            answer = await world.client.get(f"/v1/sandboxes/{sandbox}/contexts/nobody")
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found")

    serve(scenario)


def test_a_detached_cell_and_its_end(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            code = await code_of(world, client)
            cell = await code.detach(body("out one\nhang"))
            await until(lambda: world.sandboxes.guests)
            await cell.interrupt()
            execution = await cell.join()
            assert (execution.end, execution.logs.stdout) == (Interrupted(state_kept=True), "one\n")
            flood = await code.detach(body("flood 8000000"))
            guest = next(iter(world.sandboxes.guests.values()))
            await until(lambda: guest.code.cells[flood.cell_id].end)
            joined = await flood.join(max_output_bytes=1000)
            assert joined.truncated_bytes == 8_000_000 - 1000
            assert len(joined.logs.stdout) == 1000
            with pytest.raises(errors.StateConflict):
                await cell.interrupt()
            with pytest.raises(errors.NotFound):
                await code.join("nobody", 0, Sinks())

    serve(scenario)


def test_the_sync_side(serve):
    async def scenario(world):
        sandbox, seen = await world.create(), []

        def use() -> None:
            with Client(f"unix://{world.path}") as client:
                code, contexts = Code(client, f"/v1/sandboxes/{sandbox}"), Contexts(client, f"/v1/sandboxes/{sandbox}")
                execution = code.run(
                    body("out a\nx"), SyncSinks(seen.append, None, lambda result: seen.append(result.text))
                )
                assert (execution.text, seen) == ("x", [b"a\n", "x"])
                assert code.detach(body("out b")).join().logs.stdout == "b\n"
                assert contexts.list()[0].context_id == "default"

        await anyio.to_thread.run_sync(use)

    serve(scenario)


def test_many_cells_use_one_connection(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            code = await code_of(world, client)
            for _ in range(5):
                await code.run(body("x"), Sinks())
            pool = client._http._transport._pool
            assert len(pool.connections) == 1
            assert "Request Count: 5" in pool.connections[0].info()

    serve(scenario)


def test_a_callback_that_raises_ends_the_cell(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            code = await code_of(world, client)

            def fail(_data: bytes) -> None:
                raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                await code.run(body("out a\nhang"), Sinks(fail))
            guest = next(iter(world.sandboxes.guests.values()))
            await until(lambda: next(iter(guest.code.cells.values())).end)

    serve(scenario)


def test_a_websocket_has_the_same_lines(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            sandbox = await world.create()
            async with client.socket(f"/v1/sandboxes/{sandbox}/code") as socket:
                await socket.send(json.dumps({"code": "out a\nx\nhang"}))
                events = []
                while (message := await socket.receive()) is not None:
                    events.append(json.loads(message))
                    if events[-1]["event"] == "result":
                        await socket.send('{"op": "interrupt"}')
                assert [event["event"] for event in events] == ["begun", "stdout", "result", "end"]
                assert events[-1]["end"] == {"kind": "interrupted", "state_kept": True}
            async with client.socket(f"/v1/sandboxes/{sandbox}/code") as socket:
                await socket.send(json.dumps({"code": "hang"}))
                assert json.loads(await socket.receive())["event"] == "begun"
            cell = list(world.guest(sandbox).code.cells.values())[-1]
            await until(lambda: cell.end)
            for wrong in ("{}", '{"code": 7}', "no JSON"):
                async with client.socket(f"/v1/sandboxes/{sandbox}/code") as socket:
                    await socket.send(wrong)
                    assert json.loads(await socket.receive())["event"] == "error"

    serve(scenario)


def test_what_run_code_takes(serve):
    async def scenario(world):
        async with AsyncClient(f"unix://{world.path}") as client:
            box = await AsyncSandbox.connect(await world.create(), client=client)
            assert (await box.run_code("x")).text == "x"
            assert (await box.run_code("stdin", stdin=b"given")).logs.stdout == "given"
            limits = (await box.run_code("limits", limits={"results": 3})).text
            assert limits == '{"results": 3}'
            assert (await box.run_code("hang", 0.2, grace_s=1)).end == CodeTimedOut(0.2, state_kept=True)
            assert (await box.run_code("count", language="bash")).text == "1"
            assert (await box.run_code("count", language="bash")).text == "2"
            cell = await box.run_code("out a", detach=True)
            assert (await box.join_code(cell.cell_id)).logs.stdout == "a\n"
            with pytest.raises(errors.InvalidSpec, match="not both"):
                await box.run_code("x", context="default", language="bash")
            with pytest.raises(errors.InvalidSpec, match="not UTF-8"):
                await box.run_code("x", stdin=b"\xff")
            with pytest.raises(errors.InvalidSpec, match="limits"):
                await box.run_code("x", limits={"rows": 1})

    serve(scenario)


def test_both_sides_take_the_same():
    assert Sandbox.run_code.__annotations__.keys() == AsyncSandbox.run_code.__annotations__.keys()

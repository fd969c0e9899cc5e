"""Cells over HTTP: every line in its order, ends of all kinds, queues, joins, interrupts."""

import base64
import json

import anyio
import pytest
from api_world import until


async def run(world, sandbox, code, **more):
    """All lines of a cell."""
    answer = await world.client.post(f"/v1/sandboxes/{sandbox}/code", json={"code": code, **more})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def text(lines, stream="stdout"):
    return b"".join(base64.b64decode(line["data"]) for line in lines if line["event"] == stream)


def shown(text, **more):
    return {"type": "result", "data": {"text/plain": text}, "metadata": {}, "update": False, "cut": {}, **more}


def test_a_cell_from_its_begin_to_its_end(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await run(world, sandbox, "out hello\n6*7\nerr there")
        assert [line["event"] for line in lines] == ["begun", "stdout", "result", "stderr", "end"]
        assert (lines[0]["context"], lines[0]["execution_count"]) == ("default", 1)
        assert len(lines[0]["cell_id"]) == 16
        assert (text(lines), text(lines, "stderr")) == (b"hello\n", b"there\n")
        assert lines[2] == {"event": "result", "offset": 6, "result": shown("6*7")}
        assert lines[3]["offset"] > lines[2]["offset"] == 6
        end = lines[4]
        assert end.pop("offset") == lines[3]["offset"] + 6
        assert end == {
            "event": "end", "end": {"kind": "ok"}, "execution_count": 1, "duration_ms": 3.0,
            "files_changed": [{"path": "/home/user/a", "change": "created"}], "files_cut": 0,
            "left_out": {"results": 0, "result_bytes": 0},
        }  # fmt: skip
        assert (await run(world, sandbox, "count"))[1]["result"] == shown("2")

    serve(scenario)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("1/0", {"kind": "error", "name": "ZeroDivisionError", "value": "division", "traceback": "tb"}),
        ("die", {"kind": "context-died", "reason": "exited with 3"}),
        ("memory", {"kind": "out-of-memory"}),
        ("hang", {"kind": "timed-out", "after_s": 0.2, "state_kept": True}),
    ],
)
def test_each_end_has_its_kind(serve, code, end):
    async def scenario(world):
        assert (await run(world, await world.create(), code, timeout_s=0.2))[-1]["end"] == end

    serve(scenario)


def test_half_of_a_surrogate_pair_is_no_text(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await run(world, sandbox, "half")
        assert lines[1]["result"] == shown("a \ufffd b")
        error = {"kind": "error", "name": "E", "value": "\ufffd", "traceback": "\U0001f600"}
        assert lines[-1]["end"] == error
        listed = await world.client.get(f"/v1/sandboxes/{sandbox}/cells")
        assert (listed.status_code, listed.json()["cells"][0]["end"]) == (200, error)

    serve(scenario)


def test_what_cannot_be_run_is_refused(serve):
    async def scenario(world):
        sandbox = await world.create()
        path = f"/v1/sandboxes/{sandbox}/code"
        for body, status, code in [
            ({"code": 7}, 400, "invalid-spec"),
            ({"code": "x", "timeout_s": 0}, 400, "invalid-spec"),
            ({"code": "x", "context": "a/b"}, 400, "invalid-spec"),
            ({"code": "x", "limits": {"rows": 1}}, 400, "invalid-spec"),
            ({"code": "x", "limits": {"result_bytes": 2**40}}, 400, "invalid-spec"),
            ({"code": "x", "context": "nobody"}, 404, "not-found"),
            ({"code": "x" * (16 * 2**20 + 1)}, 400, "invalid-spec"),
        ]:
            answer = await world.client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), body["code"][:20]
        answer = await world.client.post(path, content=b'{"code": "\xff"}')
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
        answer = await world.client.post(path, content=b'{"code": "\\ud800"}')
        assert answer.status_code == 400

    serve(scenario)


def test_large_code_and_input_go_in(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await run(world, sandbox, f"out {'a' * 500_000}\nstdin", stdin="line\n" * 100_000)
        assert text(lines) == b"a" * 500_000 + b"\n" + b"line\n" * 100_000
        assert text(await run(world, sandbox, "stdin", stdin="")) == b""
        assert text(await run(world, sandbox, "stdin")) == b"none"
        limits = {"result_bytes": 100, "table_rows": 5}
        assert (
            json.loads((await run(world, sandbox, "limits", limits=limits))[1]["result"]["data"]["text/plain"])
            == limits
        )

    serve(scenario)


def test_what_is_no_result_is_left_out_and_the_sandbox_lives(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await run(world, sandbox, "result {\nok\nresult []")
        assert [line["event"] for line in lines] == ["begun", "left-out", "result", "left-out", "end"]
        assert (lines[1]["size"], lines[1]["reason"]) == (1, "not JSON")
        assert lines[4]["left_out"] == {"results": 2, "result_bytes": 3}
        assert lines[4]["end"] == {"kind": "ok"}
        assert (await run(world, sandbox, "more"))[1]["result"] == shown("more")
        lines = await run(world, sandbox, f"big {33 * 2**20}\nok")
        assert [line["event"] for line in lines] == ["begun", "left-out", "result", "end"]

    serve(scenario)


def test_cells_of_a_context_queue(serve):
    async def scenario(world):
        sandbox = await world.create()
        path = f"/v1/sandboxes/{sandbox}"
        async with anyio.create_task_group() as tasks:
            seen = {}

            async def follow(number, code):
                seen[number] = await run(world, sandbox, code)

            for number, code in enumerate(("hang", "hang", "count")):
                tasks.start_soon(follow, number, code)
                await until(lambda n=number: len(world.guest(sandbox).code.cells) == n + 1)
            await until(lambda: "default" in world.guest(sandbox).code.contexts)
            first, second, third = world.guest(sandbox).code.cells
            listed = (await world.client.get(f"{path}/cells")).json()["cells"]
            assert [(cell["state"], cell["place"]) for cell in listed] == [
                ("running", None),
                ("queued", 0),
                ("queued", 1),
            ]
            await anyio.sleep(0.1)  # longer than a cell that is next may take until its place is told
            for cell_id in (first, second):
                assert (await world.client.delete(f"{path}/cells/{cell_id}")).status_code == 200
                await until(lambda n=cell_id: world.guest(sandbox).code.cells[n].end)
        assert [line["event"] for line in seen[0]] == ["begun", "end"]
        assert seen[0][-1]["end"] == {"kind": "interrupted", "state_kept": True}
        assert [(line["event"], line.get("place")) for line in seen[1]][:2] == [("queued", 0), ("begun", None)]
        assert (seen[2][0]["event"], seen[2][0]["cell_id"], seen[2][0]["place"]) == ("queued", third, 1)
        assert seen[2][-1]["end"] == {"kind": "ok"}
        answer = await world.client.delete(f"{path}/cells/{first}")
        assert (answer.status_code, answer.json()["code"]) == (409, "state-conflict")

    serve(scenario)


def test_a_detached_cell_is_joined_again(serve):
    async def scenario(world):
        sandbox = await world.create()
        path = f"/v1/sandboxes/{sandbox}"
        body = {"code": "out one\nsleep 0.3\nout two", "detach": True}
        async with world.client.stream("POST", f"{path}/code", json=body) as answer:
            cell_id = json.loads(await anext(answer.aiter_lines()))["cell_id"]
        answer = await world.client.get(f"{path}/cells/{cell_id}", params={"offset": 2})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert (lines[0]["event"], lines[0]["cell_id"], lines[0]["offset"]) == ("joined", cell_id, 2)
        assert text(lines) == b"e\ntwo\n"
        assert (lines[-1]["end"], lines[-1]["offset"]) == ({"kind": "ok"}, 8)
        answer = await world.client.get(f"{path}/cells/{cell_id}", params={"offset": 9})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
        answer = await world.client.get(f"{path}/cells/nobody")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")

    serve(scenario)


def test_what_a_log_has_lost_is_told(serve):
    async def scenario(world):
        sandbox = await world.create()
        path = f"/v1/sandboxes/{sandbox}"
        async with world.client.stream(
            "POST", f"{path}/code", json={"code": "flood 8000000", "detach": True}
        ) as answer:
            cell_id = json.loads(await anext(answer.aiter_lines()))["cell_id"]
        await until(lambda: world.guest(sandbox).code.cells[cell_id].end)
        answer = await world.client.get(f"{path}/cells/{cell_id}")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        gap = lines[1]
        assert (gap["event"], gap["from"]) == ("gap", 0)
        assert gap["to"] == lines[0]["offset"] > 0
        assert len(text(lines)) == 8_000_000 - gap["to"]

    serve(scenario)

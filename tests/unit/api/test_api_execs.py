"""Execs over HTTP: all output, in order, at the reader's pace; input, signals, ends, disconnects."""

import base64
import json
import time
import tracemalloc

import anyio
import pytest
from api_world import until


def output(lines, stream="stdout"):
    return b"".join(base64.b64decode(line["data"]) for line in lines if line["event"] == stream)


def test_output_and_end(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await world.run(sandbox, "both")
        assert (lines[0]["event"], lines[0]["pid"], lines[0]["stdout_offset"]) == ("started", 42, 0)
        assert (output(lines), output(lines, "stderr")) == (b"out", b"err")
        assert lines[-1] == {
            "event": "end", "end": {"kind": "exited", "code": 0},
            "duration_ms": 1.5, "cpu_ms": 1.0, "peak_memory_mib": 2.0,
        }  # fmt: skip
        assert (await world.run(sandbox, "exit", "7"))[-1]["end"] == {"kind": "exited", "code": 7}

    serve(scenario)


def test_refusals_have_their_own_status(serve):
    async def scenario(world):
        sandbox = await world.create()
        execs = f"/v1/sandboxes/{sandbox}/execs"
        for stream in (True, False):
            answer = await world.client.post(execs, json={"argv": ["missing"], "stream": stream})
            assert (answer.status_code, answer.json()["code"]) == (422, "exec-refused")
            assert answer.json()["evidence"]["errno"] == "ENOENT"
        for body in (
            {},
            {"argv": []},
            {"argv": ["a\0b"]},
            {"argv": ["x" * 70_000]},
            {"argv": ["x"], "timeout_s": 0},
        ):
            answer = await world.client.post(execs, json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec"), body
        answer = await world.client.get(f"{execs}/0123456789abcdef/output")
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")

    serve(scenario)


def test_a_slow_reader_stops_the_guests_program_and_loses_nothing(serve):
    total = 24 * 2**20

    async def scenario(world):
        sandbox = await world.create()
        body = {"argv": ["flood", str(total)]}
        tracemalloc.start()
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json=body) as answer:
            lines = answer.aiter_lines()
            exec_id = json.loads(await anext(lines))["exec_id"]
            program = world.guest(sandbox).programs[exec_id]
            before = -1
            while before != program.produced:  # until it stands still
                before = program.produced
                await anyio.sleep(0.3)
            assert program.produced < 4 * 2**20
            received, offset = 0, 0
            async for line in lines:
                item = json.loads(line)
                if item["event"] == "stdout":
                    assert item["offset"] == offset
                    data = base64.b64decode(item["data"])
                    for at in (0, len(data) - 1):  # a byte says which 64 KiB it belongs to
                        assert data[at] == (total - (offset + at) // 65_536 * 65_536) // 65_536 % 256
                    offset += len(data)
                    received += len(data)
            assert received == total
            assert item["event"] == "end"
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
        tracemalloc.stop()

    serve(scenario)


@pytest.mark.parametrize(("policy", "killed"), [("kill", True), ("keep", False)])
def test_a_client_that_goes_away(serve, policy, killed):
    async def scenario(world):
        sandbox = await world.create()
        body = {"argv": ["hang"], "on_disconnect": policy}
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json=body) as answer:
            exec_id = json.loads(await anext(answer.aiter_lines()))["exec_id"]
        program = world.guest(sandbox).programs[exec_id]
        await until(lambda: program.channel is None, 3)
        assert (program.end is not None) is killed
        if not killed:
            await world.client.post(f"/v1/sandboxes/{sandbox}/execs/{exec_id}/signal", json={"signal": "SIGINT"})
            answer = await world.client.get(f"/v1/sandboxes/{sandbox}/execs/{exec_id}/output")
            assert json.loads(answer.text.splitlines()[-1])["end"] == {"kind": "signaled", "signal": 2}

    serve(scenario)


def test_input_while_followed(serve):
    async def scenario(world):
        sandbox = await world.create()
        body = {"argv": ["cat"], "stdin": True}
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json=body) as answer:
            lines = answer.aiter_lines()
            exec_id = json.loads(await anext(lines))["exec_id"]
            stdin = f"/v1/sandboxes/{sandbox}/execs/{exec_id}/stdin"
            data = bytes(range(256)) * 8192

            async def feed():
                answer = await world.client.post(stdin, content=data)
                assert answer.json() == {"written": len(data)}
                await world.client.post(f"{stdin}?eof=1", content=b"last")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                rest = [json.loads(line) async for line in lines]
        assert output(rest) == data + b"last"

    serve(scenario)


def test_input_that_is_not_read_waits_and_ends_with_the_exec(serve):
    async def scenario(world):
        sandbox = await world.create()
        body = {"argv": ["deaf"], "stdin": True}
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json=body) as answer:
            lines = answer.aiter_lines()  # held: a generator that is let go closes its response
            exec_id = json.loads(await anext(lines))["exec_id"]
            path = f"/v1/sandboxes/{sandbox}/execs/{exec_id}"
            sent, answers = 0, []

            async def pieces():
                nonlocal sent
                while sent < 64 * 2**20:
                    sent += 65_536
                    yield bytes(65_536)

            async def feed():
                answers.append(await world.client.post(f"{path}/stdin", content=pieces()))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                before = -1
                while before != sent:
                    before = sent
                    await anyio.sleep(0.2)
                assert 0 < sent < 4 * 2**20
                await world.client.post(f"{path}/signal", json={"signal": "KILL"})
            assert (answers[0].status_code, answers[0].json()["code"]) == (409, "state-conflict")

    serve(scenario)


def test_a_detached_exec_is_followed_fed_and_left_again(serve):
    async def scenario(world):
        sandbox = await world.create()
        exec_id = await world.start(sandbox, "cat", stdin=True)
        path = f"/v1/sandboxes/{sandbox}/execs/{exec_id}"
        assert (await world.client.post(f"{path}/stdin", content=b"abcdef")).json() == {"written": 6}
        for _ in range(2):  # looking and leaving changes nothing, although its policy is kill
            async with world.client.stream("GET", f"{path}/output?stdout_offset=2") as answer:
                lines = answer.aiter_lines()
                assert json.loads(await anext(lines))["stdout_offset"] == 2
                item = json.loads(await anext(lines))
                assert (item["offset"], base64.b64decode(item["data"])) == (2, b"cdef")
        program = world.guest(sandbox).programs[exec_id]
        await until(lambda: program.channel is None)
        assert program.end is None
        answer = await world.client.get(f"{path}/output?stdout_offset=99")
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
        assert (await world.client.get(f"{path}/output?stdout_offset=-1")).status_code == 400
        await world.client.post(f"{path}/stdin?eof=1")
        answer = await world.client.get(f"{path}/output")
        assert json.loads(answer.text.splitlines()[-1])["end"]["kind"] == "exited"
        listed = (await world.client.get(f"/v1/sandboxes/{sandbox}/execs")).json()["execs"]
        assert [e["exec_id"] for e in listed] == [exec_id]

    serve(scenario)


def test_what_the_ring_lost_is_a_gap(serve):
    async def scenario(world):
        sandbox = await world.create()
        exec_id = await world.start(sandbox, "flood", str(3 * 2**20))
        program = world.guest(sandbox).programs[exec_id]
        await until(lambda: program.end is not None)
        answer = await world.client.get(f"/v1/sandboxes/{sandbox}/execs/{exec_id}/output")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[1] == {"event": "gap", "stream": "stdout", "from": 0, "to": 2 * 2**20}
        assert lines[2]["offset"] == 2 * 2**20
        assert len(output(lines)) == 2**20

    serve(scenario)


def test_a_guest_that_lies_loses_its_machine(serve):
    async def scenario(world):
        sandbox = await world.create()
        lines = await world.run(sandbox, "lie")
        assert lines[-1]["error"]["code"] == "protocol-violation"
        handle = world.sandboxes.get("local", sandbox)
        with anyio.fail_after(5):
            await handle.ended.wait()
        assert handle.info.state_reason.code == "protocol-violation"

    serve(scenario)


def test_killing_the_sandbox_tells_those_who_follow(serve):
    async def scenario(world):
        sandbox = await world.create()
        body = {"argv": ["hang"]}
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            await world.client.delete(f"/v1/sandboxes/{sandbox}")
            last = [json.loads(line) async for line in lines][-1]
            assert last["error"]["code"] == "state-conflict"
            assert last["error"]["evidence"]["state_reason"] == "killed"

    serve(scenario)


def test_work_keeps_a_sandbox_from_being_idle(serve):
    async def scenario(world):
        sandbox = await world.create()
        usage = world.sandboxes.get("local", sandbox).usage
        async with world.client.stream("POST", f"/v1/sandboxes/{sandbox}/execs", json={"argv": ["hang"]}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            await anyio.sleep(0.2)
            assert time.monotonic() - usage.used_at < 0.01
        await until(lambda: time.monotonic() - usage.used_at > 0.2)

    serve(scenario)

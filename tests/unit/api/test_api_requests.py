"""What is refused, and how it is said."""

import json
import os
import socket
import subprocess
import sys

import anyio
import pytest

from casemate import errors
from casemate.api.errors import STATUS, status_of
from casemate.api.reading import MAX_JSON_BYTES


def test_every_class_of_error_has_a_status():
    for kind in errors.every_error():
        assert 400 <= status_of(kind("x")) < 600
    assert status_of(errors.FileRefused("x", evidence={"errno": "ENOENT"})) == 404
    assert status_of(errors.FileRefused("x", evidence={"errno": "EACCES"})) == 409
    assert STATUS[errors.CapacityError] == 503


PROBLEM = {"type", "title", "status", "detail", "instance", "code", "hint", "retry", "evidence"}
BAD = [
    ("GET", "/v1/nothing", None, 404, "not-found", "/v1/nothing"),
    ("GET", "/v1/health/", None, 404, "not-found", "/v1/health/"),
    ("PATCH", "/v1/sandboxes", None, 405, "bad-request", "PATCH"),
    ("HEAD", "/v1/health", None, 405, None, None),
    ("POST", "/v1/sandboxes", b"{nope", 400, "bad-request", "not JSON"),
    ("POST", "/v1/sandboxes", b"\xff\xfe", 400, "bad-request", "not JSON"),
    ("POST", "/v1/sandboxes", b"[" * 100_000, 400, "bad-request", "not JSON"),
    ("POST", "/v1/sandboxes", b"[]", 400, "invalid-spec", "object"),
    ("POST", "/v1/sandboxes", b'{"vcpus": "two"}', 400, "invalid-spec", "vcpus"),
    ("POST", "/v1/sandboxes", b'{"vcpus": true}', 400, "invalid-spec", "vcpus"),
    ("POST", "/v1/sandboxes", b'{"vcpus": 1000}', 400, "invalid-spec", "vcpus"),
    ("POST", "/v1/sandboxes", b'{"idle_timeout_s": NaN}', 400, "invalid-spec", "idle_timeout_s"),
    ("POST", "/v1/sandboxes", b'{"env": {"A": 1}}', 400, "invalid-spec", "env.A"),
    ("POST", "/v1/sandboxes", b'{"colour": "red"}', 400, "invalid-spec", "colour"),
    ("POST", "/v1/sandboxes", b'{"network": "all"}', 400, "not-supported", "network"),
    ("POST", "/v1/sandboxes", b'{"labels": {"casemate/x": ""}}', 400, "invalid-spec", "casemate/x"),
    ("GET", "/v1/sandboxes?al=1", None, 400, "invalid-spec", "al"),
    ("GET", "/v1/sandboxes?all=maybe", None, 400, "invalid-spec", "all"),
    ("GET", "/v1/sandboxes?all=1&all=0", None, 400, "invalid-spec", "twice"),
    ("GET", "/v1/sandboxes/nobody", None, 404, "not-found", "nobody"),
    ("DELETE", "/v1/sandboxes/nobody", None, 404, "not-found", "nobody"),
    ("POST", "/v1/sandboxes/nobody/execs", b'{"argv": ["x"]}', 404, "not-found", "nobody"),
    ("GET", "/v1/images/other", None, 404, "not-found", "other"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code", "named"), BAD)
def test_bad_requests_are_answered_with_what_is_wrong(serve, method, path, body, status, code, named):
    async def scenario(world):
        answer = await world.client.request(method, path, content=body)
        assert answer.status_code == status, answer.text
        if code is not None:
            assert answer.headers["content-type"] == "application/problem+json"
            assert set(answer.json()) == PROBLEM
            assert answer.json()["code"] == code
            assert answer.json()["type"] == f"urn:casemate:error:{code}"
            assert answer.json()["status"] == status
            assert answer.json()["instance"] == path.partition("?")[0]
            assert named in answer.json()["detail"]

    serve(scenario)


def test_a_wrong_method_says_which_are_right(serve):
    async def scenario(world):
        answer = await world.client.put("/v1/sandboxes")
        assert sorted(answer.headers["allow"].split(", ")) == ["GET", "POST"]

    serve(scenario)


def test_a_body_over_its_limit_is_not_read(serve):
    async def scenario(world):
        sent = 0

        async def endless():
            nonlocal sent
            while sent < 100 * MAX_JSON_BYTES:
                sent += 65_536
                yield b" " * 65_536

        answer = await world.client.post("/v1/sandboxes", content=endless())
        assert (answer.status_code, answer.json()["code"]) == (413, "bad-request")

    serve(scenario)


def test_a_bug_of_ours_is_a_typed_error_too(serve):
    async def scenario(world):
        world.sandboxes.get = None
        answer = await world.client.get("/v1/sandboxes/x/files?path=a")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")

    serve(scenario)


def test_errors_of_the_host_keep_their_class(serve):
    async def scenario(world):
        for error, status in (
            (errors.HostFull("full"), 503),
            (errors.ToolMissing("no VMM", hint="apt install it", evidence={"check": "vmm"}), 500),
            (errors.BootTimeout("slow"), 502),
        ):
            world.sandboxes.fail_with = error
            for attached in (False, True):
                answer = await world.client.post("/v1/sandboxes", json={"attached": attached})
                assert answer.status_code == status
                assert type(errors.from_json(answer.json())) is type(error)
                assert answer.json()["evidence"] == error.evidence

    serve(scenario)


def test_health_and_images(serve):
    async def scenario(world):
        assert (await world.client.get("/v1/health")).json() == {"status": "ok"}
        listed = (await world.client.get("/v1/images", params={"label": "v=2"})).json()
        assert listed == {"images": [{"name": "python", "version": 2, "labels": {"v": "2"}}], "next": None}
        assert (await world.client.get("/v1/images/python@1")).json()["version"] == 1
        answer = await world.client.post("/v1/images/python/build", json={"force": True})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[-1] == {"event": "end", "image": {"name": "python", "version": 2, "forced": True}}
        assert {line["event"] for line in lines[:-1]} == {"progress"}
        assert lines[-2]["message"] == "step 999"

    serve(scenario)


def test_a_build_that_fails_midway_says_so_in_its_last_line(serve):
    async def scenario(world):
        answer = await world.client.post("/v1/images/other/build")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert answer.status_code == 200
        assert lines[-1]["event"] == "error"
        assert lines[-1]["error"]["code"] == "tool-failed"

    serve(scenario)


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: c\\r\\nConnection: close\\r\\n\\r\\n")
while data := s.recv(65536): sys.stdout.buffer.write(data)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_by_the_kernels_word(serve):
    async def scenario(world):
        os.chmod(world.path, 0o666)  # as if its mode had not kept them out
        os.chmod(os.path.dirname(world.path), 0o755)
        argv = [sys.executable, "-c", CONNECT, world.path]
        done = await anyio.run_process(argv, stderr=subprocess.STDOUT, check=False)
        if done.returncode:  # this user cannot even start our interpreter
            done = await anyio.run_process(["/usr/bin/python3", *argv[1:]], stderr=subprocess.STDOUT)
        head, _, body = done.stdout.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 403")
        assert json.loads(body)["code"] == "forbidden"

    serve(scenario)


def test_noise_instead_of_http_ends_only_its_connection(serve):
    async def scenario(world):
        def noise():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(5)
                s.connect(world.path)
                s.sendall(b"\0\1\2 not http\r\n\r\n")
                return s.recv(65_536)

        assert b"400" in await anyio.to_thread.run_sync(noise)
        assert (await world.client.get("/v1/health")).status_code == 200

    serve(scenario)

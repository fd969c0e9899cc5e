"""A daemon over TCP with real guests: keys, tenants, clients that stop, and the record of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route
from vm_world import Daemon, home_like, new_home, run_daemon
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from casemate.api.native.app import routes_only
from casemate.api.native.openapi import handlers_of
from casemate.errors import Forbidden, NotFound, Unauthorized
from casemate.sdk import Client, Events, Keys, Sandbox

pytestmark = pytest.mark.vm
STALL_S = 3


@pytest.fixture(scope="module")
def remote(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = home_like(built, tmp_path_factory.mktemp("tcp"))
    settings = {"CASEMATE_LISTEN": "127.0.0.1:0", "CASEMATE_CLIENT_STALL_S": str(STALL_S)}
    with run_daemon(home, **settings) as daemon:
        yield daemon


@pytest.fixture
def key(remote: Daemon) -> Callable[..., str]:
    def make(tenant: str, *scopes: str) -> str:
        with Client(remote.url) as local:
            return str(Keys(local).create(tenant=tenant, scopes=scopes or ("*",))["key"])

    return make


@pytest.fixture
def over_tcp(remote: Daemon) -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def open_client(key: str) -> Client:
        made.append(Client(f"http://{remote.listen}", api_key=key))
        return made[-1]

    yield open_client
    for client in made:
        client.close()


def hear_all(opened: ClientConnection) -> None:
    """Until it is closed; TimeoutError when it is not and says nothing for ten seconds (it keeps alive every four)."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        opened.recv(timeout=10)
    raise TimeoutError("it was not closed")


def wait_until(condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_key_opens_its_tenants_sandboxes_and_no_others(
    no_trace: None, remote: Daemon, key: Callable[..., str], over_tcp: Callable[[str], Client]
) -> None:
    alice, mallory = over_tcp(key("alice")), over_tcp(key("mallory"))
    with Sandbox.create(client=alice, name="box", labels={"of": "alice"}) as box:
        assert box.commands.run("echo over tcp").stdout == "over tcp\n"
        assert [info.id for info in Sandbox.list(client=alice, labels={"of": "alice"})] == [box.id]
        assert Sandbox.list(client=mallory, all=True) == []
        for name in (box.id, box.id[:8], "box"):
            with pytest.raises(NotFound):
                Sandbox.connect(name, client=mallory)
        headers = {"authorization": f"Bearer {key('mallory')}"}
        with httpx.Client(base_url=f"http://{remote.listen}", headers=headers, timeout=30) as http:
            for route in routes_only():
                if isinstance(route, Route) and route.path.startswith("/v1/sandboxes/{ref}"):
                    for method in handlers_of(route):
                        url = route.path.replace("{ref}", box.id).replace("{exec_id}", "a" * 16)
                        bodies = {
                            "code": {"code": "1"},
                            "complete": {"code": "1", "cursor": 1},
                            "inspect": {"code": "1", "cursor": 1},
                            "signal": {"signal": "TERM"},
                            "keep-alive": {"for_s": 1},
                            "snapshot": {"name": "theirs"},
                        }
                        named = next((body for end, body in bodies.items() if url.endswith(end)), {})
                        given = {"json": named} if method == "POST" and not url.endswith("stdin") else {}
                        query = {"path": "/etc/hostname"} if "/files" in url else {}
                        query |= {"to": "/tmp/x"} if url.endswith("/move") else {}
                        answer = http.request(method, url, params=query, **given)
                        assert answer.status_code == 404, (method, url, answer.text)
        assert box.refresh().state == "running"


def test_no_key_or_too_small_a_one_opens_nothing(
    remote: Daemon, key: Callable[..., str], over_tcp: Callable[[str], Client]
) -> None:
    with pytest.raises(Unauthorized), Client(f"http://{remote.listen}") as nobody:
        nobody.health()
    reader = over_tcp(key("alice", "sandboxes:read"))
    assert Sandbox.list(client=reader) == []
    with pytest.raises(Forbidden):
        Sandbox.create(client=reader)
    with pytest.raises(Forbidden):
        Keys(over_tcp(key("local", "*"))).list()


def test_one_idempotency_key_makes_one_sandbox(remote: Daemon, key: Callable[..., str], no_trace: None) -> None:
    headers = {"authorization": f"Bearer {key('alice')}", "idempotency-key": os.urandom(8).hex()}
    with httpx.Client(base_url=f"http://{remote.listen}", headers=headers, timeout=90) as http:
        found = [http.post("/v1/sandboxes", json={"idle_timeout_s": 60}) for _ in range(3)]
        assert {answer.status_code for answer in found} == {201}
        assert len({answer.json()["id"] for answer in found}) == 1
        assert len(http.get("/v1/sandboxes").json()["sandboxes"]) == 1
        http.delete(f"/v1/sandboxes/{found[0].json()['id']}")


CLIENT = """
import sys
from casemate.sdk import Sandbox
box = Sandbox.connect(sys.argv[1])
with box.commands.start(["yes"]) as running:
    for piece in running.output():
        print("ready", flush=True)
"""


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_a_client_that_goes_in_mid_stream_ends_its_command(
    remote: Daemon, key: Callable[..., str], way: int, unix: bool, no_trace: None
) -> None:
    """SIGSTOP: its kernel still answers for it, so only that nobody reads can show it."""
    env = {"CASEMATE_URL": remote.url if unix else f"http://{remote.listen}", "CASEMATE_API_KEY": key("local")}
    with Client(remote.url) as local, Sandbox.create(client=local) as box:
        argv = [sys.executable, "-c", CLIENT, box.id]
        process = subprocess.Popen(argv, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(way)
            wait_until(lambda: "yes" not in box.commands.run("ps -e -o comm").stdout, STALL_S + 15)
        finally:
            process.kill()
            process.communicate()
        assert box.commands.run("echo still").stdout == "still\n"


def test_a_revoked_key_loses_its_attached_sandbox(remote: Daemon, key: Callable[..., str], no_trace: None) -> None:
    text = key("alice")
    headers = {"authorization": f"Bearer {text}"}
    with httpx.Client(base_url=f"http://{remote.listen}", headers=headers, timeout=60) as http:
        with http.stream("POST", "/v1/sandboxes", json={"attached": True}) as answer:
            lines = answer.iter_lines()
            assert '"running"' in next(lines)
            with Client(remote.url) as local:
                Keys(local).revoke(text.split("_")[1])
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert http.get("/v1/health").status_code == 401


def test_a_terminal_needs_a_good_key_and_ends_with_it(
    no_trace: None, remote: Daemon, key: Callable[..., str], over_tcp: Callable[[str], Client]
) -> None:
    """A WebSocket comes through the same door as everything else, and goes out by it."""
    text = key("alice")
    address = f"ws://{remote.listen}"
    with Client(remote.url) as local, Sandbox.create(client=over_tcp(key("alice"))) as box:
        path = f"/v1/sandboxes/{box.id}/terminal"
        for headers, status in (
            ({}, 401),
            ({"authorization": f"Bearer {text}", "origin": "http://evil.example"}, 403),
            ({"authorization": f"Bearer {key('alice', 'sandboxes:read')}"}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused:
                connect(address + path, additional_headers=headers)
            assert refused.value.response.status_code == status, headers
        with connect(address + path, additional_headers={"authorization": f"Bearer {text}"}) as opened:
            body = {"argv": ["sleep", "600"], "stdin": True, "pty": {"rows": 24, "cols": 80, "term": "xterm"}}
            opened.send(json.dumps(body))
            assert json.loads(opened.recv(timeout=30))["event"] == "started"
            Keys(local).revoke(text.split("_")[1])
            with pytest.raises(ConnectionClosed):
                hear_all(opened)
        wait_until(lambda: "sleep" not in box.commands.run("ps -e -o comm").stdout, 10)


def test_what_happened_is_on_record_and_the_record_is_whole(remote: Daemon, key: Callable[..., str]) -> None:
    with Client(remote.url) as local:
        events = Events(local)
        mark = events.verify()["mark"]
        with events.follow() as more:
            made = key("bob")
            key("local")
            assert next(more)["event"] == "key.created"
        bobs = [e for e in events.list(all_tenants=True, limit=1000) if e["tenant"] == "bob"]
        assert [(e["event"], e["subject"]) for e in bobs] == [("key.created", made.split("_")[1])]
        found = events.verify(mark)
        assert (found["ok"], found["broken"]) == (True, None)
    argv = [sys.executable, "-m", "casemate.cli", "audit", "verify", "--mark", mark]
    done = subprocess.run(argv, env=os.environ | {"CASEMATE_URL": remote.url}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"unbroken" in done.stdout


AS_ANOTHER = """
import http.client, json, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
for path in ("/v1/sandboxes", "/v1/keys", "/v1/audit"):
    c = http.client.HTTPConnection("c", timeout=10)
    c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1])
    c.request("GET", path); a = c.getresponse()
    print(path, a.status, flush=True); a.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_with_a_tenant_may_use_the_socket_and_another_may_not() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # as /var/lib is: others may pass; pytest's own are closed to them
        with run_daemon(new_home(Path(folder)), CASEMATE_TENANTS_BY_UID="1234=alice") as daemon:
            socket = str(daemon.home / "run/daemon.sock")

            def asked(uid: int) -> list[str]:
                argv = ["/usr/bin/python3", "-c", AS_ANOTHER, socket, str(uid)]
                done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
                return [line.split()[1] for line in done.stdout.splitlines()]

            assert asked(1234) == ["200", "403", "403"]
            assert asked(1235) == ["403", "403", "403"]

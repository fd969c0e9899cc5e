"""What may be listened on, and TLS."""

import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from api_world import DEADLINE_S

from casemate.api import listener as listener_module
from casemate.api.connections import Address, Limits
from casemate.api.hosts import is_loopback, names_of
from casemate.api.listener import Server, open_listener, proxies_of, split_address
from casemate.config import load
from casemate.errors import HostError, InvalidSpec


@pytest.fixture
def settings(tmp_path):
    def made(**flags):
        return load({"CASEMATE_HOME": str(tmp_path)}, **flags)

    return made


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return str(cert), str(key)


@pytest.mark.parametrize(
    ("text", "found"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), (":8080", ("", 8080))]
)
def test_an_address_is_read(text, found):
    assert split_address(text) == found


@pytest.mark.parametrize("text", ["", "8080", "localhost", "::1:80", "host:http", "a:65536", "a:-1", "a:٣"])
def test_what_is_no_address(text):
    with pytest.raises(InvalidSpec, match="HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ":0"])
def test_an_address_others_reach_needs_somebody_who_encrypts(settings, address, certificate):
    with pytest.raises(InvalidSpec, match="in clear"):
        open_listener(settings(listen=address))
    cert, key = certificate
    for safe in ({"tls_cert": cert, "tls_key": key}, {"behind_proxy": "192.0.2.1"}):
        listener = open_listener(settings(listen=address, **safe))
        assert listener.address.rpartition(":")[2] != "0"
        listener.close()


def test_the_loopback_needs_nothing_and_no_address_means_none(settings):
    listener = open_listener(settings(listen="localhost:0"))
    assert is_loopback(listener.socket.getsockname()[0])
    listener.close()
    assert open_listener(settings()) is None


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"tls_cert": "/nowhere"}, InvalidSpec),
        ({"listen": "127.0.0.1:0", "tls_cert": "/nowhere", "tls_key": "/nowhere"}, HostError),
        ({"listen": "no-such-host.invalid:0"}, InvalidSpec),
        ({"listen": "192.0.2.77:0", "behind_proxy": "192.0.2.1"}, HostError),
    ],
)
def test_what_cannot_be_is_said_before_the_daemon_starts(settings, flags, error):
    with pytest.raises(error):
        open_listener(settings(**flags))


def test_a_port_that_is_taken(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HostError, match="in use"):
        open_listener(settings(listen=f"127.0.0.1:{taken.getsockname()[1]}"))


def test_proxies_are_addresses(settings):
    assert [str(n) for n in proxies_of(settings(behind_proxy="192.0.2.1, 10.0.0.0/8"))] == [
        "192.0.2.1/32",
        "10.0.0.0/8",
    ]
    with pytest.raises(InvalidSpec, match="behind_proxy"):
        proxies_of(settings(behind_proxy="nginx"))


def test_settings_of_lists_and_tables(settings, tmp_path):
    (tmp_path / "config.toml").write_text('allow_hosts = ["a.example"]\n[tenants_by_uid]\n1000 = "alice"\n')
    assert settings().allow_hosts == ("a.example",)
    assert settings().tenants_by_uid == {1000: "alice"}
    assert settings(tenants_by_uid="1001=bob,1002=eve").tenants_by_uid == {1001: "bob", 1002: "eve"}
    for wrong in ({"tenants_by_uid": "alice"}, {"tenants_by_uid": 7}, {"allow_hosts": 7}):
        with pytest.raises(InvalidSpec):
            settings(**wrong)


def test_a_wildcard_is_no_name():
    assert names_of("0.0.0.0", ["Box.Example"]) == {"localhost", "127.0.0.1", "::1", "box.example"}
    assert "192.0.2.1" in names_of("192.0.2.1", [])


@asynccontextmanager
async def serving(listener):
    server = Server(hello, Limits(), listener.tls)

    async def serve():
        with anyio.CancelScope(shield=True):  # it cannot be cancelled cleanly, only asked
            await server.serve([listener.socket])

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            try:
                yield
            finally:
                server.should_exit = True


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["state"]["peer"].host.encode()})


def test_tls_end_to_end(settings, certificate):
    cert, key = certificate
    listener = open_listener(settings(listen="127.0.0.1:0", tls_cert=cert, tls_key=key))

    async def main():
        async with serving(listener):
            trusted = ssl.create_default_context(cafile=cert)
            async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
                assert (await client.get(f"https://{listener.address}/")).text == "127.0.0.1"
                with pytest.raises(httpx.HTTPError):
                    await client.get(f"http://{listener.address}/")

    anyio.run(main, backend_options={"use_uvloop": True})
    listener.close()


def test_a_hand_shake_that_does_not_come_has_a_deadline(settings, certificate, monkeypatch):
    monkeypatch.setattr(listener_module, "TLS_S", 0.3)
    cert, key = certificate
    listener = open_listener(settings(listen="127.0.0.1:0", tls_cert=cert, tls_key=key))

    def wait(address):
        with socket.create_connection(address) as silent:
            silent.settimeout(5)
            return silent.recv(1)

    async def main():
        async with serving(listener):
            assert await anyio.to_thread.run_sync(wait, listener.socket.getsockname()) == b""

    anyio.run(main, backend_options={"use_uvloop": True})
    listener.close()


def test_an_ipv4_peer_of_a_dual_socket_is_an_ipv4_peer(settings):
    listener = open_listener(settings(listen="[::]:0", behind_proxy="127.0.0.1"))
    port = listener.socket.getsockname()[1]

    async def main():
        async with serving(listener), httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "127.0.0.1"

    anyio.run(main, backend_options={"use_uvloop": True})
    listener.close()


def test_one_source_is_an_address_or_a_whole_network_of_them():
    assert Address("192.0.2.1").source == "192.0.2.1"
    assert Address("2001:db8::1").source == Address("2001:db8::ffff:2").source == "2001:db8::/64"

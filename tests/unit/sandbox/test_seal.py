"""The host's seal: what it covers, what it refuses, and who can reach its key."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import errors
from casemate.daemon import HOME_MODES
from casemate.sandbox import Seal, open_seal
from casemate.sandbox.seal import KEY_BYTES

FACTS = {"digests": {"state": "ab", "memory": "cd"}, "id": "s1", "sizes": [1, 2]}
IMAGE, SUSPENDED = "image-snapshot", "suspended-sandbox"
SOME_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """As make_home leaves it."""
    (tmp_path / "seal").mkdir(mode=0o700)
    return tmp_path


def test_what_was_sealed_is_recognised_by_the_next_daemon(home: Path) -> None:
    mac = open_seal(home).over("a", IMAGE, FACTS)
    reordered = dict(reversed(list(json.loads(json.dumps(FACTS)).items())))
    open_seal(home).check("a", IMAGE, reordered, mac, what="it")


@pytest.mark.parametrize(
    ("tenant", "kind", "facts"),
    [
        ("b", IMAGE, FACTS),
        ("a", SUSPENDED, FACTS),
        ("a", IMAGE, FACTS | {"id": "s2"}),
        ("a", IMAGE, FACTS | {"more": None}),
        ("a", IMAGE, {k: v for k, v in FACTS.items() if k != "id"}),
        ("a", IMAGE, FACTS | {"sizes": ["1", 2]}),
        ("a", IMAGE, FACTS | {"size": float("nan")}),
    ],
)
def test_another_tenant_kind_or_fact_breaks_it(home: Path, tenant: str, kind: str, facts: dict[str, object]) -> None:
    seal = open_seal(home)
    mac = seal.over("a", IMAGE, FACTS)
    with pytest.raises(errors.SealBroken, match="it was not sealed by this host"):
        seal.check(tenant, kind, facts, mac, what="it")  # type: ignore[arg-type]


@pytest.mark.parametrize("mac", [None, "", 7, "0" * 64, "\udcff", b"x", "ÿ" * 64])
def test_no_mac_or_a_senseless_one_breaks_it(home: Path, mac: object) -> None:
    with pytest.raises(errors.SealBroken):
        open_seal(home).check("a", IMAGE, FACTS, mac, what="it")


def test_another_hosts_key_breaks_it(tmp_path: Path) -> None:
    seals = []
    for name in ("one", "two"):
        (tmp_path / name / "seal").mkdir(mode=0o700, parents=True)
        seals.append(open_seal(tmp_path / name))
    with pytest.raises(errors.SealBroken):
        seals[1].check("a", IMAGE, FACTS, seals[0].over("a", IMAGE, FACTS), what="it")


@given(SOME_JSON, SOME_JSON)
def test_equal_facts_have_one_mac_and_others_another(one: object, two: object) -> None:
    seal = Seal(b"k" * KEY_BYTES)
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    macs = [seal.over("a", IMAGE, {"facts": facts}) for facts in (one, two)]
    assert (macs[0] == macs[1]) == same


def test_the_key_is_its_owners_alone_and_in_no_text_of_ours(home: Path) -> None:
    seal, path = open_seal(home), home / "seal" / "key"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(path.read_bytes()) == KEY_BYTES
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert path.read_bytes().hex() not in repr(seal)
    assert repr(path.read_bytes()) not in repr(seal)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a VMM's uid")
def test_a_vmms_account_cannot_read_it() -> None:
    """A VMM's uid owns nothing and has no group but its own; here it is even given the daemon's."""
    daemon_uid, vmm_uid = 2_000_000_000, 2_000_000_001
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to all but root
        home, key = Path(folder), Path(folder, "seal", "key")
        key.parent.mkdir(mode=0o700)
        open_seal(home)
        for path in (home, key.parent, key):
            os.chown(path, daemon_uid, daemon_uid)
        home.chmod(HOME_MODES["."])
        reach = {group: _errno_of_reading_as(vmm_uid, group, key) for group in (vmm_uid, daemon_uid)}
        assert reach == {vmm_uid: "EACCES", daemon_uid: "EACCES"}
        key.parent.chmod(0o711)  # the file's mode alone is enough
        assert _errno_of_reading_as(vmm_uid, daemon_uid, key) == "EACCES"
        assert _errno_of_reading_as(daemon_uid, daemon_uid, key) == ""  # it is the account that counts


def _errno_of_reading_as(uid: int, gid: int, path: Path) -> str:
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            try:
                path.read_bytes()
                os.write(write_end, b"")
            except OSError as error:
                os.write(write_end, {13: b"EACCES"}.get(error.errno or 0, str(error.errno).encode()))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as said:
        answer = said.read().decode()
    os.waitpid(child, 0)
    return answer


def seal_something(home: Path, where: str) -> None:
    (home / where).mkdir(parents=True)
    (home / where / "manifest.json").write_text(json.dumps({"format": 2, "mac": "ab"}))


@pytest.mark.parametrize("where", ["snapshots/s1", "sandboxes/b1/suspended"])
def test_a_lost_key_is_never_replaced_while_something_is_sealed(home: Path, where: str) -> None:
    seal_something(home, where)
    with pytest.raises(errors.HostError, match="is gone, and 1 stored machines") as raised:
        open_seal(home)
    assert str(home / where) in raised.value.hint
    assert not (home / "seal" / "key").exists()


def test_what_was_never_sealed_or_never_whole_keeps_no_key_from_being_made(home: Path) -> None:
    seal_something(home, "snapshots/.building-x")
    (home / "snapshots" / "old").mkdir()
    (home / "snapshots" / "old" / "manifest.json").write_text('{"format": 1}')
    (home / "snapshots" / "torn").mkdir()
    (home / "snapshots" / "torn" / "manifest.json").write_text('{"mac": ')
    open_seal(home)


@pytest.mark.parametrize("content", [b"", b"k" * (KEY_BYTES - 1), b"k" * (KEY_BYTES + 1)])
def test_a_key_of_another_size_is_refused(home: Path, content: bytes) -> None:
    path = home / "seal" / "key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(errors.HostError, match="is not of 32 bytes"):
        open_seal(home)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_can_reach_is_refused(home: Path, mode: int) -> None:
    open_seal(home)
    (home / "seal" / "key").chmod(mode)
    with pytest.raises(errors.HostError, match=f"open to others .mode {mode:03o}") as raised:
        open_seal(home)
    assert "chmod 600" in raised.value.hint


def test_a_key_that_is_no_file_of_ours_is_refused(home: Path) -> None:
    path = home / "seal" / "key"
    (home / "elsewhere").write_bytes(b"k" * KEY_BYTES)
    path.symlink_to(home / "elsewhere")
    with pytest.raises(errors.HostError, match="cannot be read"):
        open_seal(home)
    path.unlink()
    path.mkdir()
    with pytest.raises(errors.HostError, match=r"cannot be read|is not a file"):
        open_seal(home)

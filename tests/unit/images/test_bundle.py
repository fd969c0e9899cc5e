"""A bundle: what is written is read again; of anything else nothing stays."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, HostFull, InvalidSpec
from casemate.images import Manifest, Store
from casemate.images import bundle as bundles

CONTENT = {"kernel": b"k" * 1000, "initrd": b"i" * 512, "root": os.urandom(3_000_000)}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "python",
        "version": 3,
        "config": {"user": "user", "cwd": "/home/user"},
        "kernel_release": "6.12.1-cloud",
        "artifacts": {part: (digest(data), len(data)) for part, data in CONTENT.items()},
    }
    return Manifest(**fields | changes)


def bundle(said: Manifest | None = None, content: dict[str, bytes] = CONTENT) -> bytes:
    return b"".join(bundles.written(said or manifest(), {part: io.BytesIO(data) for part, data in content.items()}))


WHOLE = bundle()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def leftovers(store: Store) -> list[str]:
    return [p.name for p in store.root.iterdir() if not p.name.startswith((".lock", ".verified"))]


def refused(store: Store, data: bytes, match: str = "not an image that casemate exported") -> None:
    with pytest.raises(InvalidSpec, match=match):
        bundles.stage(io.BytesIO(data), store)
    assert leftovers(store) == []


def test_what_is_written_is_read(store: Store) -> None:
    assert len(WHOLE) == bundles.length(manifest())
    staged = bundles.stage(io.BytesIO(WHOLE), store)
    assert staged.manifest == manifest()
    assert store.digests() == []
    staged.enter()
    assert store.digests() == sorted(digest(data) for data in CONTENT.values())
    for data in CONTENT.values():
        assert store.path(digest(data)).read_bytes() == data
        store.verify(digest(data))
    assert len(leftovers(store)) == 3


def test_given_up_it_leaves_nothing(store: Store) -> None:
    bundles.stage(io.BytesIO(WHOLE), store).abandon()
    assert leftovers(store) == []


def test_any_tar_program_can_look_into_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        assert tar.getnames()[0] == "casemate-image.json"
        assert [member.size for member in tar.getmembers()][1:] == [len(data) for data in CONTENT.values()]


def test_one_packed_again_by_tar_is_taken(store: Store, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
    assert len(packed.getvalue()) % tarfile.RECORDSIZE == 0
    bundles.stage(io.BytesIO(packed.getvalue()), store).abandon()


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 2000, len(WHOLE) // 2, len(WHOLE) - 1025, len(WHOLE) - 1])
def test_one_that_was_cut_leaves_nothing(store: Store, cut: int) -> None:
    refused(store, WHOLE[:cut], "stops before its end")


@pytest.mark.parametrize("place", [600, 1024 + 512 + 10, len(WHOLE) - 2_000_000])
def test_one_changed_byte_is_noticed(store: Store, place: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= 1
    refused(store, bytes(damaged))


def test_more_behind_it_is_refused(store: Store) -> None:
    refused(store, WHOLE + b"x", "more after")
    refused(store, WHOLE + bytes(2 << 20), "more after")


def entry(name: str, data: bytes = b"", **fields: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def says(**changes: Any) -> bytes:
    body = json.loads(manifest().to_bytes()) | changes
    return entry("casemate-image.json", json.dumps(body).encode())


PART = {"digest": "0" * 64, "size": 10}
ODD = {
    "a path": entry("../../etc/passwd", b"root::0:0"),
    "an absolute path": entry("/etc/passwd", b"root::0:0"),
    "a link as manifest": entry("casemate-image.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a device": says() + entry("sha256/x", type=tarfile.CHRTYPE),
    "a path for an artifact": says() + entry("../x", CONTENT["kernel"]),
    "a link for an artifact": says() + entry(f"sha256/{digest(CONTENT['kernel'])}", type=tarfile.LNKTYPE, linkname="x"),
    "another size": says() + entry(f"sha256/{digest(CONTENT['kernel'])}", b"short"),
    "a sparse one": says() + entry(f"sha256/{digest(CONTENT['kernel'])}", type=b"S"),
    "a long name": entry("x", b"casemate-image.json\0", type=tarfile.GNUTYPE_LONGNAME),
    "a huge manifest": entry("casemate-image.json", b" " * 70_000),
    "an empty manifest": entry("casemate-image.json"),
    "no JSON": entry("casemate-image.json", b"{"),
    "deep JSON": entry("casemate-image.json", b"[" * 60_000),
    "a long number": entry("casemate-image.json", b'{"format": 1' + b"1" * 60_000 + b"}"),
    "a list": entry("casemate-image.json", b"[]"),
    "another format": says(format=2),
    "a name that is a path": says(name="../x"),
    "a name with a colour": says(name="\x1b[31m"),
    "a name of another kind": says(name=["python"]),
    "version true": says(version=True),
    "version 0": says(version=0),
    "config with more": says(config={"user": "user", "run": "rm"}),
    "config of another kind": says(config={"user": 1}),
    "config that is a list": says(config=["user"]),
    "a cwd with a newline": says(config={"cwd": "/home\n"}),
    "no artifacts": says(artifacts={}),
    "one more artifact": says(artifacts={"kernel": PART, "initrd": PART, "root": PART, "agent": PART}),
    "a digest that is a path": says(artifacts={"kernel": PART | {"digest": "../" * 20}, "initrd": PART, "root": PART}),
    "a negative size": says(artifacts={"kernel": PART | {"size": -1}, "initrd": PART, "root": PART}),
    "a size of 2^63": says(artifacts={"kernel": PART | {"size": 2**63}, "initrd": PART, "root": PART}),
    "a size that is no number": says(artifacts={"kernel": PART | {"size": 1.5}, "initrd": PART, "root": PART}),
    "a negative size in the header": says() + entry("sha256/x")[:124] + b"\xff" * 12 + entry("sha256/x")[136:],
    "zeros": bytes(100_000),
    "noise": os.urandom(100_000),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_refused(store: Store, odd: str) -> None:
    refused(store, ODD[odd])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"S", b"x"])
def test_whole_but_for_the_kind_of_a_member(store: Store, kind: bytes) -> None:
    """Right name, size and content: the kind alone is odd."""
    name = f"sha256/{digest(CONTENT['kernel'])}"
    odd = entry(name, CONTENT["kernel"], type=kind)
    refused(store, WHOLE.replace(entry(name, CONTENT["kernel"], mode=0o444), odd))


class Endless(io.RawIOBase):
    """A header, then zeros for ever; counts what is taken."""

    def __init__(self, begins: bytes) -> None:
        self.left, self.taken = begins, 0

    def read(self, size: int = -1) -> bytes:
        piece, self.left = self.left[:size], self.left[size:]
        self.taken += size
        assert self.taken < 1 << 20, "it believed a length"
        return piece or bytes(size)


@pytest.mark.parametrize("size", [70_000, 1 << 40])
def test_a_manifests_length_is_not_believed(store: Store, size: int) -> None:
    source = Endless(_sized("casemate-image.json", size))
    with pytest.raises(InvalidSpec):
        bundles.stage(source, store)  # type: ignore[arg-type]
    assert source.taken == 512


def _sized(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_a_size_that_does_not_fit_is_said_before_it_is_sent(store: Store) -> None:
    huge = says(artifacts={p: PART | {"size": bundles.MAX_ARTIFACT_BYTES[p]} for p in bundles.PARTS})
    free = os.statvfs(store.root)
    if free.f_bavail * free.f_frsize > 8 << 30:
        pytest.skip("there is room for 8 GiB here")
    with pytest.raises(HostFull, match="MiB are free"):
        bundles.stage(io.BytesIO(huge), store)


@given(data=st.binary(max_size=3000), begins=st.sampled_from([0, 512, 1024, 1536]))
def test_whatever_comes_is_refused_in_a_typed_way(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, begins: int
) -> None:
    store = Store(tmp_path_factory.mktemp("s") / "artifacts")
    with pytest.raises(CasemateError):
        bundles.stage(io.BytesIO(WHOLE[:begins] + data), store)
    assert leftovers(store) == []

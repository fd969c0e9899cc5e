"""The four files a machine boots from, each in the store: kernel, initramfs, root disk, agent disk.

``<store>/.index/<part>.json`` says which artifacts were made last, and from what (*key*); written here by
rename, under the lock of that part, and read here. Parts whose key still fits are not made again, and then
nothing asks the network or waits; ``force`` asks the archives for what is newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import NotFound, ToolFailed
from casemate.images import agentdisk, erofs, initramfs, kernel, rootfs
from casemate.images.locks import held
from casemate.images.packages import Apt, extract
from casemate.images.store import Store
from casemate.images.tools import Progress, no_progress, run

LOCK_TIMEOUT_S = 2400.0
REST_TIMEOUT_S = 5.0
INDEX_FORMAT = 1
BUSYBOX = "busybox-static"

KERNEL_PARTS = ("kernel", "initrd")

Made = dict[str, str]
"""What the index holds of one part: names of artifacts and their digests, and a few words on their origin."""

Bootstrap = Callable[[rootfs.Recipe, Path, Callable[[str], None]], None]
"""Runs ``rootfs.bootstrap_argv`` of a recipe and hands on each line it says; the daemon has its launcher do it."""


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What one image boots from. Paths lie in the store; digests are their names."""

    kernel: Path
    initrd: Path
    root: Path
    agent: Path
    kernel_release: str

    @property
    def digests(self) -> Mapping[str, str]:
        return {part: getattr(self, part).name for part in ("kernel", "initrd", "root", "agent")}


class Workshop:
    """Makes artifacts below *home*: ``artifacts/`` is the store, ``cache/`` holds packages and half-products.

    Blocking throughout: call it from a worker thread. Two builds of one part take turns.
    """

    def __init__(self, home: Path, apt_options: tuple[str, ...] = ()) -> None:
        self.store = Store(home / "artifacts")
        self.cache = home / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.apt = Apt(self.cache, apt_options)
        self._index = self.store.root / ".index"
        self._index.mkdir(exist_ok=True)

    def prepare(
        self,
        image: str = "python",
        *,
        force: bool = False,
        progress: Progress = no_progress,
        bootstrap: Bootstrap | None = None,
    ) -> Artifacts:
        """The artifacts of a built-in image: those at hand where they still fit, new ones where not.

        Raises NotFound (no such built-in image), HostError, HostFull, ToolMissing, ToolFailed.
        """
        recipe = _recipe(image)
        boot = self._kernel(force, progress)
        agent = self._agent(force, progress)
        root = self._root(recipe, force, progress, bootstrap or bootstrap_directly)
        return Artifacts(
            kernel=self.store.path(boot["kernel"]),
            initrd=self.store.path(boot["initrd"]),
            root=self.store.path(root["root"]),
            agent=self.store.path(agent["agent"]),
            kernel_release=boot["release"],
        )

    def root(
        self,
        image: str,
        *,
        force: bool = False,
        progress: Progress = no_progress,
        bootstrap: Bootstrap | None = None,
    ) -> Path:
        """Only the root disk of a built-in image. Raises as prepare."""
        made = self._root(_recipe(image), force, progress, bootstrap or bootstrap_directly)
        return self.store.path(made["root"])

    @contextmanager
    def at_rest(self) -> Iterator[set[str]]:
        """The digests that the index names, while nobody makes a part: none is in the store but not yet named.

        Raises HostError when somebody makes one for longer than REST_TIMEOUT_S.
        """
        with ExitStack() as locks:
            for part in ("kernel", "agent", *(f"root-{name}" for name in rootfs.RECIPES)):
                locks.enter_context(held(self.cache / f"{part}.lock", timeout_s=REST_TIMEOUT_S))
            named: set[str] = set()
            for path in self._index.glob("*.json"):
                named.update(word for word in _strings(path) if self.store.has(word))
            yield named

    def agent(self, progress: Progress = no_progress) -> Path:
        """Only the agent disk, made anew when a file of ours on it has changed. Raises as prepare."""
        return self.store.path(self._agent(False, progress)["agent"])

    def _kernel(self, force: bool, progress: Progress) -> Made:
        recipe = json.dumps([INDEX_FORMAT, initramfs.init_script(), kernel.BOOT_MODULES, kernel.VSOCK_MODULES])
        key = hashlib.sha256(recipe.encode()).hexdigest()
        if not force and (known := self._recall("kernel", key, KERNEL_PARTS)):
            return known
        with self._bench("kernel", progress) as folder:
            if not force and (known := self._recall("kernel", key, KERNEL_PARTS)):
                return known
            self.apt.refresh(progress, force=force)
            package, busybox = kernel.choose(self.apt), self.apt.resolve([BUSYBOX])[0]
            debs = self.apt.fetch([package, busybox], progress)
            unpacked = kernel.unpack(debs[0], folder / "kernel", progress)
            extract([debs[1]], folder / "busybox")
            image = self.store.add(unpacked.vmlinux)
            with self.store.new() as initrd:
                initramfs.write(unpacked, folder / "busybox/bin/busybox", initrd.path)
            made = {"kernel": image, "initrd": initrd.digest, "release": unpacked.release}
            return self._note("kernel", key, made | {"package": f"{package.name} {package.version}"})

    def _agent(self, force: bool, progress: Progress) -> Made:
        sources = agentdisk.package_root()
        base = None if force else agentdisk.find_base(self.cache)
        if base and (known := self._recall("agent", agentdisk.key(base, sources), ("agent",))):
            return known
        with self._bench("agent", progress) as folder:
            if base is None:
                self.apt.refresh(progress, force=force)
            base = base or agentdisk.make_base(self.apt, self.cache, folder, progress)
            progress("agent", "packing the agent", None)
            tree = folder / "agent"
            agentdisk.put_together(base, sources, tree)
            key = agentdisk.key(base, sources)
            with self.store.new() as disk:
                erofs.freeze(tree, disk.path)
            return self._note("agent", key, {"agent": disk.digest})

    def _root(self, recipe: rootfs.Recipe, force: bool, progress: Progress, bootstrap: Bootstrap) -> Made:
        commands = rootfs.bootstrap_argv(recipe, Path("/out"), as_root=True)
        key = hashlib.sha256(json.dumps([INDEX_FORMAT, commands]).encode()).hexdigest()
        part = f"root-{recipe.name}"
        if not force and (known := self._recall(part, key, ("root",))):
            return known
        with self._bench(part, progress) as folder:
            if not force and (known := self._recall(part, key, ("root",))):
                return known
            bootstrap(recipe, folder / "disk", rootfs.Watcher(progress))
            progress("root", "taking the digest", None)
            digest = self.store.take(folder / "disk")
            return self._note(part, key, {"root": digest})

    @contextmanager
    def _bench(self, part: str, progress: Progress) -> Iterator[Path]:
        """A fresh folder to make *part* in, for one builder at a time below this home.

        What builders that died left of this part is deleted first: the lock says that they are dead.
        Raises HostError when another one takes too long.
        """

        def waiting() -> None:
            progress("wait", f"somebody else is making the {part}; waiting", None)

        with held(self.cache / f"{part}.lock", timeout_s=LOCK_TIMEOUT_S, waiting=waiting):
            for leftover in self.cache.glob(f".new-{part}-*"):
                shutil.rmtree(leftover, ignore_errors=True)  # what resists is met again next time
            with tempfile.TemporaryDirectory(prefix=f".new-{part}-", dir=self.cache) as folder:
                yield Path(folder)

    def _recall(self, part: str, key: str, artifacts: tuple[str, ...]) -> Made | None:
        try:
            known = json.loads((self._index / f"{part}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(known, dict) or known.get("key") != key:
            return None
        if not all(self.store.has(str(known.get(name, ""))) for name in artifacts):
            return None
        return {name: str(value) for name, value in known.items()}

    def _note(self, part: str, key: str, made: Mapping[str, str]) -> Made:
        entry = {"format": str(INDEX_FORMAT), "key": key, **made}
        temp = self._index / f".{secrets.token_hex(8)}"
        temp.write_text(json.dumps(entry, indent=1))
        temp.rename(self._index / f"{part}.json")
        return entry


def _strings(path: Path) -> list[str]:
    """The values of an index entry; one that cannot be read names nothing."""
    try:
        return [str(value) for value in json.loads(path.read_text()).values()]
    except (ValueError, AttributeError):
        return []


def _recipe(image: str) -> rootfs.Recipe:
    if image not in rootfs.RECIPES:
        raise NotFound(f"no built-in image {image[:80]!r}", hint=f"there are: {', '.join(rootfs.RECIPES)}")
    return rootfs.RECIPES[image]


def bootstrap_directly(recipe: rootfs.Recipe, out: Path, on_line: Callable[[str], None]) -> None:
    """Make the root disk by running mmdebstrap from this very process, as whoever it is."""
    argv = rootfs.bootstrap_argv(recipe, out, as_root=os.geteuid() == 0)
    run(argv, timeout_s=rootfs.BOOTSTRAP_TIMEOUT_S, cwd=Path("/"), on_line=on_line)
    if not out.is_file():
        raise ToolFailed("mmdebstrap ended well but left no disk", evidence={"argv": argv})

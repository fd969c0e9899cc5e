"""One database file: opened, migrated, and used from worker threads, one act at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy as sa

from casemate.errors import CasemateError, HostError, HostFull
from casemate.storage.schema import SCHEMA

P = ParamSpec("P")
T = TypeVar("T")
BUSY_TIMEOUT_MS = 5000


class Database:
    """An act is a function that takes a connection first; each is one transaction of its own.

    Acts run in a worker thread: most take well under 1 ms, but now and then one also pays for the
    fsync of a checkpoint, and the event loop carries everybody's streams.
    """

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self.path = path
        self._engine = engine
        self._turn = anyio.CapacityLimiter(1)  # SQLite has one writer; queue here, not in its busy handler

    async def write(self, act: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do *act* whole or not at all. Cancelled: it is still done whole, the caller learns of it late.

        Raises what *act* raises; HostFull when the disk has no room; HostError when the database refuses.
        """
        return await anyio.to_thread.run_sync(partial(self.write_now, act, *args, **kwargs), limiter=self._turn)

    async def read(self, act: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of *act*, all of it as of one moment. Raises as write does."""
        return await self.write(act, *args, **kwargs)

    async def write_then(self, act: Callable[[sa.Connection], T], then: Callable[[T], None]) -> T:
        """As write; once *act* is committed, and before any other act, *then* gets its result."""

        def both() -> T:
            result = self.write_now(act)
            then(result)
            return result

        return await anyio.to_thread.run_sync(both, limiter=self._turn)

    def write_now(self, act: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same in this thread, for where there is no event loop yet."""
        try:
            with self._engine.begin() as connection:
                return act(connection, *args, **kwargs)
        except sa.exc.OperationalError as error:
            raise _refused(self.path, error) from error

    async def settle(self) -> None:
        """When this returns, what was written before outlives a power cut. Raises HostError.

        A commit alone only reaches the write-ahead log; one fsync of that file is what SQLite itself would do.
        """
        await anyio.to_thread.run_sync(self._settle)

    def _settle(self) -> None:
        try:
            log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a checkpoint, which syncs, has just emptied it
            return
        try:
            os.fsync(log)
        except OSError as error:
            raise HostError(f"{self.path}: {error.strerror}", hint="see that its disk is whole") from error
        finally:
            os.close(log)

    def close(self) -> None:
        self._engine.dispose()


def open(path: Path) -> Database:
    """The database at *path*, made or brought up to date first. Blocks; only the owner of the home calls it.

    Raises HostError: not writable, not a database, or written by a later version of Casemate.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"{path} cannot be opened: {error.strerror}", hint="see that its folder is writable") from error
    engine = sa.create_engine(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "begin", _on_begin)
    try:
        with engine.connect() as connection:
            found = _revision(connection)
        if found != SCHEMA:
            _migrate(engine, path, found)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        raise _refused(path, error) from error
    except BaseException:
        engine.dispose()
        raise
    return Database(engine, path)


def _on_connect(dbapi: Any, record: object) -> None:
    # The stdlib driver would begin transactions only before DML, so that a failed migration stays half done
    dbapi.isolation_level = None
    cursor = dbapi.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last rows, never the file; it is an index
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _revision(connection: sa.Connection) -> str | None:
    """By hand, because importing alembic takes longer than everything else here."""
    known = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").first()
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() if known else None


def _migrate(engine: sa.Engine, path: Path, found: str | None) -> None:
    # here, not above: alembic is slow to import and an up-to-date database needs none of it
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise HostError(
            f"{path} is at schema {found}; this version of Casemate knows up to {SCHEMA}",
            hint="start the newer Casemate that wrote it, or move the file away: it is rebuilt",
        )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refused(path: Path, error: sa.exc.DatabaseError) -> CasemateError:
    if "is full" in str(error.orig):
        return HostFull(f"{path}: {error.orig}", hint="free some disk space")
    return HostError(f"{path}: {error.orig}", hint="see that the file is a database; moved away, it is rebuilt")

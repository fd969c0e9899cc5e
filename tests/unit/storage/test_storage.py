"""The index: migrations, rows, and what the tables themselves refuse."""

import subprocess
import sys
import time
from dataclasses import replace

import anyio
import pytest
import sqlalchemy as sa

from casemate import storage
from casemate.errors import HostError, NotFound, StateConflict
from casemate.storage import schema


@pytest.fixture
def database(tmp_path):
    database = storage.open(tmp_path / "casemate.db")
    yield database
    database.close()


def sandbox(id="a" * 26, **changes):
    row = storage.SandboxRow(
        id=id, tenant="local", host_id="h", name=None, image="python@1", snapshot_id="s",
        state="pending", info={"id": id}, created_at=1.0, updated_at=1.0,
    )  # fmt: skip
    return replace(row, **changes)


def test_the_migrations_lead_to_exactly_the_tables_of_the_schema(database):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database._engine.connect() as connection:
        assert storage.database._revision(connection) == schema.SCHEMA
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_every_table_has_the_columns_every_row_must_have():
    for table in schema.metadata.tables.values():
        for name in ("tenant", "host_id", "created_at", "updated_at", "revision"):
            assert table.c[name].nullable is False


def test_an_up_to_date_database_opens_without_alembic(tmp_path, database):
    code = (
        "import sys; from pathlib import Path; from casemate import storage;"
        f" storage.open(Path({str(database.path)!r})).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_the_file_is_ours_alone_and_in_wal_mode(database):
    assert database.path.stat().st_mode & 0o777 == 0o600
    mode = database.write_now(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar())
    assert mode == "wal"


def test_a_later_schema_is_refused_and_named(tmp_path):
    database = storage.open(tmp_path / "db")
    database.write_now(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(HostError, match="9999"):
        storage.open(tmp_path / "db")


def test_a_file_that_is_no_database_is_a_host_error(tmp_path):
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(HostError, match="db"):
        storage.open(tmp_path / "db")


def test_a_migration_that_fails_leaves_nothing_half_made(tmp_path, database):
    def fails(connection):
        connection.execute(sa.text("CREATE TABLE half (x)"))
        raise KeyError

    with pytest.raises(KeyError):
        database.write_now(fails)
    assert "half" not in sa.inspect(database._engine).get_table_names()


def test_all_eight_states_are_allowed_and_no_other(database):
    for number, state in enumerate(schema.SANDBOX_STATES):
        database.write_now(storage.sandboxes.put, sandbox(str(number), state=state))
    with pytest.raises(sa.exc.IntegrityError):
        database.write_now(storage.sandboxes.put, sandbox("x", state="failed"))
    assert len(database.write_now(storage.sandboxes.listed, "local", all=True)) == 8
    assert len(database.write_now(storage.sandboxes.listed, "local")) == 7


def test_the_states_are_those_of_the_sandbox_room():
    from casemate.sandbox.states import State

    assert tuple(state.value for state in State) == schema.SANDBOX_STATES


def test_put_replaces_and_counts_revisions(database):
    first = sandbox(name="box")
    database.write_now(storage.sandboxes.put, first)
    database.write_now(storage.sandboxes.put, replace(first, state="running", updated_at=2.0))
    (found,) = database.write_now(storage.sandboxes.listed, "local")
    assert found == replace(first, state="running", updated_at=2.0, revision=2)
    assert database.write_now(storage.sandboxes.find, "local", first.id) == found


def test_a_name_is_unique_among_the_live_ones_of_one_tenant(database):
    put = storage.sandboxes.put
    database.write_now(put, sandbox("1", name="box"))
    database.write_now(put, sandbox("2", name="box", tenant="other"))
    with pytest.raises(StateConflict, match="box"):
        database.write_now(put, sandbox("3", name="box"))
    database.write_now(put, sandbox("1", name="box", state="terminated"))
    database.write_now(put, sandbox("3", name="box"))
    assert database.write_now(storage.sandboxes.find, "other", "1") is None


def test_terminated_rows_are_forgotten_after_their_day(database):
    database.write_now(storage.sandboxes.put, sandbox("1", state="terminated", updated_at=10.0))
    database.write_now(storage.sandboxes.put, sandbox("2", state="terminated", updated_at=99.0))
    assert database.write_now(storage.sandboxes.forget_terminated, before=50.0) == 1


def test_versions_count_up_and_one_is_active(database):
    images = storage.images
    first = database.write_now(images.add_version, "local", "h", "python", {"user": "user"})
    second = database.write_now(images.add_version, "local", "h", "python", {})
    assert (first.reference, second.number, first.config, first.state) == (
        "python@1",
        2,
        {"user": "user"},
        "pending",
    )
    with pytest.raises(NotFound, match="python"):
        database.write_now(images.version, "local", "python")
    for each in (first, second):
        database.write_now(
            images.update_version, each.id, state="ready", artifacts={"root": "ab"}, size_bytes=7, log="done"
        )
        database.write_now(images.activate, each.id)
    active = database.write_now(images.version, "local", "python")
    assert (active.number, active.state, active.artifacts, active.log) == (2, "ready", {"root": "ab"}, "done")
    assert [v.active for v in database.write_now(images.versions, "local")] == [True, False]
    assert [i.name for i in database.write_now(images.listed, "local")] == ["python"]
    with pytest.raises(NotFound):
        database.write_now(images.version, "other", "python")


def test_a_session_says_what_it_is_and_a_tag_moves_to_who_claims_it_last(database):
    images = storage.images
    built = database.write_now(images.add_version, "local", "h", "mine", {})
    kept = [
        database.write_now(images.add_version, "local", "h", "mine", {}, kind="session", parent="python@1")
        for _ in range(2)
    ]
    assert (built.kind, built.parent, built.tag, built.contains_session_state) == ("built", None, None, False)
    assert (kept[0].kind, kept[0].parent, kept[0].contains_session_state) == ("session", "python@1", True)
    elsewhere = database.write_now(images.add_version, "local", "h", "other", {}, kind="session")
    for row in (elsewhere, *kept):
        database.write_now(images.claim_tag, row.id, "good")
    tags = {row.reference: row.tag for row in database.write_now(images.versions, "local")}
    assert tags == {"mine@1": None, "mine@2": None, "mine@3": "good", "other@1": "good"}


def test_what_stood_in_an_older_index_was_built(tmp_path, monkeypatch):
    from alembic import command

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0003"))
    old = storage.open(tmp_path / "old.db")
    common = "tenant, host_id, created_at, updated_at, revision"
    values = "'local', 'h', 1.0, 1.0, 1"
    old.write_now(
        lambda c: [
            c.exec_driver_sql(f"INSERT INTO images (id, name, {common}) VALUES (1, 'python', {values})"),
            c.exec_driver_sql(
                "INSERT INTO image_versions (id, image_id, number, config, state, active, artifacts, size_bytes, log,"
                f" {common}) VALUES (7, 1, 1, '{{}}', 'ready', 1, '{{}}', 5, '', {values})"
            ),
            c.exec_driver_sql(
                "INSERT INTO snapshots (id, version_id, vcpus, memory_mib, disk_mib, platform, state, memory_bytes,"
                f" {common}) VALUES ('s', 7, 1, 512, 64, '{{}}', 'ready', 0, {values})"
            ),
        ]
    )
    old.close()
    monkeypatch.undo()
    database = storage.open(tmp_path / "old.db")
    (found,) = database.write_now(storage.images.versions, "local")
    assert (found.reference, found.kind, found.tag) == ("python@1", "built", None)
    assert [row.id for row in database.write_now(storage.images.snapshots_of, 7)] == ["s"]
    with pytest.raises(sa.exc.IntegrityError):
        database.write_now(lambda c: c.exec_driver_sql("UPDATE image_versions SET kind = 'odd'"))
    database.close()


def test_snapshots_keep_their_shape_and_platform(database):
    images = storage.images
    version = database.write_now(images.add_version, "local", "h", "python", {})
    row = storage.SnapshotRow("s1", "local", "h", version.id, 1, 512, 1024, {"cpu": "max"}, "building", 0)
    database.write_now(images.put_snapshot, row)
    database.write_now(images.put_snapshot, replace(row, memory_mib=9, state="ready", memory_bytes=5))
    (found,) = database.write_now(images.snapshots_of, version.id)
    assert (found.memory_mib, found.platform, found.state, found.memory_bytes, found.revision) == (
        512, {"cpu": "max"}, "ready", 5, 2,
    )  # fmt: skip
    database.write_now(images.put_snapshot, replace(row, id="s2"))
    assert database.write_now(images.fail_unfinished, "the daemon died") == 1
    assert [s.state for s in database.write_now(images.snapshots_of, version.id)] == ["ready", "failed"]


def test_acts_from_many_tasks_take_turns(database):
    async def main():
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(database.write, storage.sandboxes.put, sandbox(str(number)))
        return await database.read(storage.sandboxes.listed, "local")

    assert len(anyio.run(main)) == 30


def test_a_cancelled_write_is_done_whole(database):
    async def main():
        def slow(connection):
            storage.sandboxes.put(connection, sandbox("1"))
            begun.set()
            time.sleep(0.05)
            storage.sandboxes.put(connection, sandbox("2"))

        begun = __import__("threading").Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.write, slow)
            await anyio.to_thread.run_sync(begun.wait, 5)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert len(database.write_now(storage.sandboxes.listed, "local")) == 2

"""Who stands on which version: its sandboxes, suspended or not, the ready ones of pools, and pools themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from casemate.build.host import BUILT_IN
from casemate.build.references import Reference
from casemate.errors import InvalidSpec
from casemate.storage import PoolRow, SandboxRow, VersionRow, pools, sandboxes
from casemate.storage import images as rows


@dataclass(frozen=True, slots=True)
class Users:
    """As of one moment, of all tenants. Made by ``read``."""

    sandboxes: Mapping[int, Sequence[SandboxRow]]  # by the id of a version
    pools: Mapping[int, Sequence[PoolRow]]

    @classmethod
    def read(cls, connection: sa.Connection) -> Users:
        """An act of the database's."""
        versions, made_of = rows.all_versions(connection), rows.version_by_snapshot(connection)
        by_version: dict[int, list[SandboxRow]] = {}
        for row in sandboxes.live(connection):
            # A copy of a sandbox stands on a snapshot of its own, and on its version's kernel and disks all the same
            named = first_meant(versions, owners_of(row.tenant, row.info.get("image_tenant")), row.image)
            for id in {made_of.get(row.snapshot_id), named.id if named else None} - {None}:
                by_version.setdefault(id, []).append(row)  # type: ignore[arg-type]
        by_pool: dict[int, list[PoolRow]] = {}
        for pool in pools.listed(connection):
            if version := first_meant(versions, owners_of(pool.tenant, None), pool.image):
                by_pool.setdefault(version.id, []).append(pool)
        return cls(by_version, by_pool)

    def of(self, version: VersionRow) -> Sequence[SandboxRow]:
        return self.sandboxes.get(version.id, ())

    def pools_of(self, version: VersionRow) -> Sequence[PoolRow]:
        return self.pools.get(version.id, ())

    def has(self, version: VersionRow) -> bool:
        return bool(self.of(version) or self.pools_of(version))


def meant(versions: Iterable[VersionRow], reference: Reference) -> VersionRow | None:
    """The newest of one tenant's *versions* that *reference* can mean."""
    return max(filter(reference.means, versions), key=lambda version: version.number, default=None)


def owners_of(tenant: str, image_tenant: str | None) -> Sequence[str]:
    """Whose the image may be that a sandbox of *tenant* has: exactly one, where that was written down."""
    return (tenant, BUILT_IN) if image_tenant is None else (image_tenant,)


def first_meant(versions: Iterable[VersionRow], owners: Sequence[str], text: str) -> VersionRow | None:
    """What *text* means to the first of *owners* to whom it means anything."""
    try:
        reference = Reference.parse(text)
    except InvalidSpec:  # by a version of ours that took it
        return None
    known = list(versions)
    for owner in owners:
        if found := meant((version for version in known if version.tenant == owner), reference):
            return found
    return None

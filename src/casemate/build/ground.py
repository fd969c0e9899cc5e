"""What suspended sandboxes stand on: the snapshot under their memory, and what boots them when that is of no use."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import sqlalchemy as sa

from casemate import errors
from casemate.build.host import BUILT_IN, BuildHost
from casemate.build.shapes import Shapes
from casemate.build.users import first_meant
from casemate.sandbox import Kit, Made, Snapshot, check_fit
from casemate.storage import VersionRow
from casemate.storage import images as rows
from casemate.vmm import Kernel


class Ground:
    """Every method may be called from any task."""

    def __init__(self, host: BuildHost, shapes: Shapes) -> None:
        self._host = host
        self._shapes = shapes

    async def check(self, made: Made, what: str) -> None:
        """Raises Unfit, about *what*, with every reason why what was *made* so cannot be restored here."""
        check_fit(made, await self._host.here(made), "suspended-sandbox", what)

    async def snapshot(self, tenant: str, snapshot_id: str) -> Snapshot:
        """Also one that fits no more. Raises ImageBroken, SealBroken."""
        return await self._shapes.stored_one(snapshot_id, (tenant, BUILT_IN))

    async def kit(self, owners: Sequence[str], image: str) -> Kit:
        """What boots a machine of that version today, of the first of *owners* who has it.

        Raises NotFound, ImageBroken.
        """
        version = await self._host.database.read(_version_of, owners, image)
        try:
            parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
        except KeyError as error:
            raise errors.ImageBroken(f"image {image} is not whole", hint="casemate image build --force") from error
        driver = self._host.driver
        kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
        return Kit(kernel, parts.kernel_release, parts.root, parts.agent, await driver.platform())


def _version_of(connection: sa.Connection, owners: Sequence[str], image: str) -> VersionRow:
    if found := first_meant(rows.all_versions(connection), owners, image):
        return found
    raise errors.NotFound(f"there is no image {image[:100]!r} any more", hint="see `casemate image ls`")

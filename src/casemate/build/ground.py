"""What suspended sandboxes stand on: the snapshot under their memory, and what boots them when that is of no use."""

from __future__ import annotations

import anyio

from casemate import errors
from casemate.build.host import BUILT_IN, BuildHost
from casemate.build.shapes import Shapes
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

    async def kit(self, tenant: str, image: str) -> Kit:
        """What boots a machine of that version today. Raises NotFound, ImageBroken."""
        version = await self._version(tenant, image)
        try:
            parts = await anyio.to_thread.run_sync(self._host.artifacts, version)
        except KeyError as error:
            raise errors.ImageBroken(f"image {image} is not whole", hint="casemate image build --force") from error
        driver = self._host.driver
        kernel = Kernel(parts.kernel, parts.initrd, driver.kernel_arguments)
        return Kit(kernel, parts.kernel_release, parts.root, parts.agent, await driver.platform())

    async def _version(self, tenant: str, image: str) -> VersionRow:
        name, _, number = image.partition("@")
        try:
            return await self._host.database.read(rows.version, tenant, name, int(number))
        except errors.NotFound:
            return await self._host.database.read(rows.version, BUILT_IN, name, int(number))

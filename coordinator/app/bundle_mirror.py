"""The folder of a mirror: bundles under their hashes, to be served by any web server."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.mirrors import bundle_name
from fleetnas.supernet_export.bundle import SupernetBundle


def add_to_mirror(supernet: Path, folder: Path) -> Path:
    """Copy a bundle into a mirror's folder; returns the path of the copy.

    Raises:
        BundleError: the file is no bundle.
        UsageError: the folder cannot be written.
    """
    bundle = SupernetBundle.open(supernet)
    target = folder / bundle_name(bundle.sha256)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Put in place as a whole: agents may request it at any moment.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as copy, supernet.open("rb") as source:
            try:
                shutil.copyfileobj(source, copy)
                os.fchmod(copy.fileno(), 0o644)
                os.replace(copy.name, target)
            except BaseException:
                os.unlink(copy.name)
                raise
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {reason_of(error)}; choose another folder") from None
    return target

"""Recognise that the installed fleetnas was replaced while this process runs the code from before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from fleetnas.fleet_protocol.errors import CodeReplacedError

#: What the agent and its measuring child share: both must run the same code of it.
_PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent")
_ROOT = Path(__file__).resolve().parents[2]


def code_digest(root: Path = _ROOT, packages: Sequence[str] = _PACKAGES) -> str:
    """Return a digest of all Python files of `packages` in the folder `root`, as they are on disk now."""
    digest = hashlib.sha256()
    # Unlike `rglob`, it leaves out a folder that is removed while it looks.
    walked = (entry for package in packages for entry in os.walk(root / package))
    for path in sorted(Path(folder, name) for folder, _, names in walked for name in names if name.endswith(".py")):
        try:
            content = path.read_bytes()
        except OSError:  # it is being replaced
            content = b""
        digest.update(f"{path.relative_to(root)}:{len(content)}:".encode() + content)
    return digest.hexdigest()


class InstalledCode:
    """The code on disk, as it was when this was made."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._digest = code_digest(root)

    def check(self) -> None:
        """Raise `CodeReplacedError` if the code on disk is another one now: a new child would run that."""
        if code_digest(self._root) != self._digest:
            raise CodeReplacedError(
                "fleetnas was updated on this device after this program had started, and a measurement would run parts "
                "of both versions; start it again"
            )

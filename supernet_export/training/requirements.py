"""Tell which packages a training needs and are missing, before anything is read."""

from __future__ import annotations

from importlib import util

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra


def require_torch(task: str) -> None:
    """Raise `MissingDependencyError` where torch is not installed; `task` is what needs it, such as `fine-tuning`."""
    if util.find_spec("torch") is None:
        raise MissingDependencyError(f"{task} needs torch, which is not installed; run: {install_extra('train')}")

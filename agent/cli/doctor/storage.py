"""Check the files that the agent needs: temporary files, the state folder, the host's lock."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding, finding_of
from fleetnas.agent.cli.installation.layout import SERVICE_STATE, UNIT, USER, Installation
from fleetnas.agent.measuring.host_lock import ENVIRONMENT_VARIABLE, default_host_lock_path, hold_host_lock
from fleetnas.agent.service.own_name import stranded
from fleetnas.agent.service.state_folder import StateFolder, unusable_place
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.folders import temporary_folder

_MIN_FREE_DISK = 500 * 1024**2


def check_temporary_files(_: DoctorContext) -> Iterator[Finding]:
    """Check that temporary files can be written."""
    try:
        yield Finding("temporary files", "ok", str(temporary_folder()))
    except FleetnasError as error:
        yield finding_of("temporary files", error)


def check_state_folder(context: DoctorContext) -> Iterator[Finding]:
    """Check that the state folder can be written and has room, and that no results wait under another name."""
    folder = context.state_folder
    closed = unusable_place(StateFolder(folder, context.fleet, context.name))
    if closed is not None:
        place, fault = closed
        fix = "choose another with --state-dir"
        if not os.path.lexists(folder):
            fix = f"sudo install -d -o {_user_name()} {folder}, or {fix}"
        elif os.path.isdir(place) or os.path.isfile(place):
            fix = f"sudo chown -R {_user_name()} {folder}, or {fix}"
        yield Finding("state folder", "broken", f"{place} {fault}", fix)
        return
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    free = shutil.disk_usage(there).free
    if free < _MIN_FREE_DISK:
        text = f"{folder} has {free / 1e6:,.0f} MB free; a bundle may need {_MIN_FREE_DISK / 1e6:,.0f} MB"
        yield Finding("state folder", "warning", text, f"free some space, or delete {folder / 'blobs'}")
    else:
        made = "" if there == folder else " (it will be made)"
        yield Finding("state folder", "ok", f"{folder}{made}, {free / 1e9:,.1f} GB free")
    yield from service_findings(folder, Installation())
    for other in stranded(folder, context.fleet, context.name):
        text = f"{other.unacknowledged} results of {other.name} wait here, and this agent is {context.name}"
        yield Finding("results", "warning", text, f"fleetnas-agent run --name {other.name}, once, to deliver them")


def service_findings(state_folder: Path, installation: Installation) -> Iterator[Finding]:
    """Warn if this host's service, which runs as another user, is not what was checked."""
    if state_folder == SERVICE_STATE or not os.path.exists(installation.unit):
        return
    program = Path(sys.executable).with_name("fleetnas-agent")
    yield Finding(
        "service",
        "warning",
        f"this is not the check of {UNIT}, which runs as {USER} and keeps its state in {SERVICE_STATE}",
        f"sudo -u {USER} STATE_DIRECTORY={SERVICE_STATE} {program} doctor --config {installation.configuration}",
    )


def check_host_lock(_: DoctorContext) -> Iterator[Finding]:
    """Check that the host's lock can be taken."""
    path = default_host_lock_path()
    waiting: list[str] = []

    class _HeldError(Exception):
        pass

    def on_wait() -> None:
        raise _HeldError

    try:
        with hold_host_lock(path, on_wait):
            pass
    except _HeldError:
        waiting.append("; another agent of this host is measuring")
    except FleetnasError as error:
        fix = f"export {ENVIRONMENT_VARIABLE}=FILE, a file that every agent of this host can read"
        yield Finding("host lock", "broken", str(error).partition(";")[0], fix)
        return
    yield Finding("host lock", "ok", f"{path}{''.join(waiting)}")


def _user_name() -> str:
    return os.environ.get("USER") or str(os.getuid())

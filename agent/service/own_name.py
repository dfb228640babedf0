"""The name of an agent that was given none: the host's when it first ran here, and the same ever after.

Results that wait to be delivered, and what a fleet has learned of a device, belong to a name. A host that is renamed,
and a container, which has a new name at every start, must not lose them. A state folder that was copied to another
board, with the rest of its memory card, is another agent: it takes its own host's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleetnas.agent.cli.host_status import AgentStatus, host_standing
from fleetnas.agent.host.device_files import text
from fleetnas.fleet_protocol.messages import Identifier

#: Where boards tell their serial number; on most computers root alone may read it.
_SERIALS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_uuid",
)

_log = logging.getLogger("fleetnas.agent")


class _Remembered(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Identifier
    #: Digest of the board's serial number; empty where it does not tell one.
    board: str = ""


def host_name() -> str:
    """The host's name, as far as a topic can hold it."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", platform.node().partition(".")[0]).strip("-._")[:64] or "agent"


def own_name(state: Path, fleet: str, root: Path = Path("/")) -> str:
    """The name under which an agent ran in this state folder before, else the host's; nothing is written."""
    host, board = host_name(), _board(root)
    known = _read(state)
    if known is not None and (known.board == board or not known.board or not board):
        return known.name
    if known is not None or (state / "fleets" / fleet / host).is_dir():
        return host
    # Before names were remembered: results of a single agent wait under another name, which was this host's.
    waiting = [agent for agent in host_standing(state).agents if agent.fleet == fleet]
    return waiting[0].name if len(waiting) == 1 and _is_stranded(waiting[0]) else host


def remember_name(state: Path, name: str, root: Path = Path("/")) -> None:
    """Keep a name that nobody gave for the next start; what cannot be written is forgotten."""
    if name != host_name():
        _log.info(
            "the host is called %s and this agent stays %s, under which its results are kept; --name %s changes that",
            *(host_name(), name, host_name()),
        )
    cached = _Remembered(name=name, board=_board(root))
    if _read(state) == cached:
        return
    temporary = _file(state).with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(cached.model_dump_json())
        os.replace(temporary, _file(state))


def stranded(state: Path, fleet: str, name: str) -> list[AgentStatus]:
    """Other agents of this state folder and fleet whose results wait while they do not run."""
    agents = host_standing(state).agents
    return [agent for agent in agents if agent.fleet == fleet and agent.name != name and _is_stranded(agent)]


def _is_stranded(agent: AgentStatus) -> bool:
    return bool(agent.unacknowledged) and not agent.running


def _file(state: Path) -> Path:
    return state / "name.json"


def _read(state: Path) -> _Remembered | None:
    try:
        return _Remembered.model_validate_json(_file(state).read_bytes())
    except (OSError, ValidationError):
        return None


def _board(root: Path) -> str:
    serial = next((found for place in _SERIALS if (found := text(root / place))), "")
    return hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else ""

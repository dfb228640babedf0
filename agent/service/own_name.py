"""Choose the name of an agent that was given none: the host's name at its first start, and the same ever after.

Results that wait to be delivered, and a fleet's measurements of a device, belong to a name. A host that is renamed,
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

from fleetnas.agent.host.device_files import text
from fleetnas.agent.service.host_status import AgentStatus, read_host_status
from fleetnas.fleet_protocol.messages import Identifier

#: Files with a board's serial number; on most computers root alone may read them.
_SERIALS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_uuid",
)

_log = logging.getLogger("fleetnas.agent")


class _StoredName(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Identifier
    #: Digest of the board's serial number; empty if the board has none.
    board: str = ""


def host_name() -> str:
    """Return the host's name without the characters that a topic cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", platform.node().partition(".")[0]).strip("-._")[:64] or "agent"


def own_name(state: Path, fleet: str, root: Path = Path("/")) -> str:
    """Return the name under which an agent ran in this state folder before, else the host's; write nothing."""
    host, board = host_name(), _board(root)
    known = _read(state)
    if known is not None and (known.board == board or not known.board or not board):
        return known.name
    if known is not None or (state / "fleets" / fleet / host).is_dir():
        return host
    # Before names were remembered: results of a single agent wait under another name, which was this host's.
    waiting = [agent for agent in read_host_status(state).agents if agent.fleet == fleet]
    return waiting[0].name if len(waiting) == 1 and _is_stranded(waiting[0]) else host


def remember_name(state: Path, name: str, root: Path = Path("/")) -> None:
    """Keep a chosen name for the next start, if the state folder can be written."""
    if name != host_name():
        _log.info(
            "the host is called %s and this agent stays %s, under which its results are kept; --name %s changes that",
            *(host_name(), name, host_name()),
        )
    cached = _StoredName(name=name, board=_board(root))
    if _read(state) == cached:
        return
    temporary = _file(state).with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(cached.model_dump_json())
        os.replace(temporary, _file(state))


def stranded(state: Path, fleet: str, name: str) -> list[AgentStatus]:
    """Return other agents of this state folder and fleet that do not run and whose results wait."""
    agents = read_host_status(state).agents
    return [agent for agent in agents if agent.fleet == fleet and agent.name != name and _is_stranded(agent)]


def _is_stranded(agent: AgentStatus) -> bool:
    return bool(agent.unacknowledged) and not agent.running


def _file(state: Path) -> Path:
    return state / "name.json"


def _read(state: Path) -> _StoredName | None:
    try:
        return _StoredName.model_validate_json(_file(state).read_bytes())
    except (OSError, ValidationError):
        return None


def _board(root: Path) -> str:
    serial = next((found for place in _SERIALS if (found := text(root / place))), "")
    return hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else ""

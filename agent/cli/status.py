"""The command `fleetnas-agent status`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fleetnas.agent.service.host_status import HostStatus, read_host_status
from fleetnas.agent.service.state_folder import DEFAULT_PLACE, default_state_folder


def add_status_options(status: argparse.ArgumentParser) -> None:
    """Add all options of `status`."""
    status.set_defaults(command=status_command)
    status.add_argument("--state-dir", type=Path, metavar="DIR", help=f"(default: {DEFAULT_PLACE})")
    status.add_argument("--json", action="store_true", help="print one JSON object")


def status_command(options: argparse.Namespace) -> int:
    """Print the status of this host's agents; return the exit code."""
    status = read_host_status(options.state_dir or default_state_folder())
    text = json.dumps(asdict(status)) if options.json else "\n".join(status_lines(status))
    sys.stdout.write(text + "\n")
    return 0


def status_lines(status: HostStatus) -> list[str]:
    """Return the status as lines for people."""
    lines = []
    for agent in status.agents:
        state = "running" if agent.running else "stopped"
        waiting = "outbox unreadable" if agent.unacknowledged is None else f"{agent.unacknowledged} results to deliver"
        fetching = "".join(f", fetching {sha256[:12]} ({size:,} bytes so far)" for sha256, size in agent.partial)
        lines.append(f"{agent.fleet}/{agent.name}: {state}, {waiting}, {agent.acknowledged or 0} delivered{fetching}")
    lines = lines or ["no agent has run here yet; start one with: fleetnas-agent run --broker HOST"]
    return [*lines, f"cache: {status.blobs} blobs, {status.blob_bytes / 1e6:,.1f} MB"]

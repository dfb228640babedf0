"""Write the text of the systemd unit."""

from __future__ import annotations

import re
from pathlib import Path

from fleetnas.agent.cli.installation.layout import USER, Installation
from fleetnas.fleet_protocol.errors import UsageError

_UNIT_TEXT = """\
[Unit]
Description=fleetnas agent: measures subnets on this device for a fleet
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
ExecStart={python} -m fleetnas.agent run --config {configuration}
User={user}
{groups}StateDirectory=fleetnas
StateDirectoryMode=0700
# For the lock that the agents of one host share: users in the group {user} may measure beside this service.
RuntimeDirectory=fleetnas
RuntimeDirectoryMode=0770
RuntimeDirectoryPreserve=yes
Restart=always
RestartSec=5
# Bad configuration, or another agent of this name: starting again does not cure it.
RestartPreventExitStatus=2
WatchdogSec=120
# The first start takes micro-benchmarks, and may wait for another agent that is measuring.
TimeoutStartSec=900
TimeoutStopSec=20
KillMode=mixed
# The measuring child is the first to go when memory runs out; the agent itself is the last.
OOMScoreAdjust=-100
OOMPolicy=continue

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateTmp=yes
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
# Not PrivateDevices: it hides GPUs, a Pi's firmware and the like. Not ProtectClock: before systemd 253 it hides them
# too (systemd issue 18142), and without capabilities and clock system calls nothing is left to protect.
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_/.,:=+@-]+", re.ASCII)


def unit_text(installation: Installation, groups: list[str]) -> str:
    """Return the unit file; `UsageError` if it cannot hold this Python's path."""
    return _UNIT_TEXT.format(
        python=_program_word(installation.python),
        configuration=quoted_word(str("/" / installation.configuration.relative_to(installation.root))),
        user=USER,
        groups=f"SupplementaryGroups={' '.join(groups)}\n" if groups else "",
    )


def quoted_word(text: str) -> str:
    """Quote `text` as one argument of a unit's command line (systemd.service(5), systemd.syntax(7)).

    Raises `UsageError` if it has control characters.
    """
    if not text.isprintable():
        raise UsageError(f"{text!r} has characters that no unit file can hold; choose a path without them")
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(special, escaped)
    return f'"{text}"' if _PLAIN_WORD.fullmatch(text) is None else text


def _program_word(program: Path) -> str:
    # systemd takes no quotes and backslashes in a program's path, and replaces $$ only in arguments.
    if found := sorted(set(str(program)) & set("$'\"\\")):
        raise UsageError(
            f"no service can start {program}, whose path has {' '.join(found)} in it; install fleetnas in a folder "
            "without"
        )
    return quoted_word(str(program))

"""The commands `fleetnas-agent install-service` and `uninstall-service`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fleetnas.agent.cli.options import add_broker_options

_KEYS = (
    "broker",
    "credentials",
    "fleet",
    "name",
    "username",
    "password_file",
    "ca_file",
    "certificate_file",
    "key_file",
)


def add_install_options(install: argparse.ArgumentParser) -> None:
    """Add all options of `install-service`."""
    install.set_defaults(command=install_command)
    add_broker_options(install)
    install.add_argument("--name", help="this agent's name in the fleet (default: the host's name)")
    install.add_argument("--fleet", help="which fleet to join (default: default)")
    install.add_argument("--setting", action="append", metavar="SETTING", help="a setting to offer, as for `run`")
    install.add_argument("--tag", action="append", metavar="TAG", help="a name of this device, as for `run`")
    install.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="write below DIR, start nothing")
    install.add_argument("--no-start", action="store_true", help="enable the service, but do not start it now")


def add_uninstall_options(uninstall: argparse.ArgumentParser) -> None:
    """Add all options of `uninstall-service`."""
    uninstall.set_defaults(command=uninstall_command)
    uninstall.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="remove below DIR")


def install_command(options: argparse.Namespace) -> int:
    """Install the service and print each step; return the exit code."""
    from fleetnas.agent.cli.installation.layout import Installation
    from fleetnas.agent.cli.installation.service import install, run_program
    from fleetnas.agent.cli.tags import parse_tags

    values = {key: str(getattr(options, key)) for key in _KEYS if getattr(options, key)}
    if options.setting:
        values["settings"] = "\n".join(options.setting)
    if options.tag:
        values["tags"] = ", ".join(parse_tags(options.tag))
    done = install(Installation(options.root), values, start=not options.no_start, run=run_program)
    sys.stdout.write("".join(f"{line}\n" for line in done))
    return 0


def uninstall_command(options: argparse.Namespace) -> int:
    """Remove the service and print each step; return the exit code."""
    from fleetnas.agent.cli.installation.layout import Installation
    from fleetnas.agent.cli.installation.service import run_program, uninstall

    sys.stdout.write("".join(f"{line}\n" for line in uninstall(Installation(options.root), run=run_program)))
    return 0

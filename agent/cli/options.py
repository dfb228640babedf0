"""Options that several commands share, and their meaning."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fleetnas.agent.cli.configuration import KEYS
from fleetnas.agent.service.state_folder import DEFAULT_PLACE
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.fleet_protocol.units import seconds

if TYPE_CHECKING:
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from fleetnas.fleet_protocol.security.credentials import Credentials

_PASSWORD_VARIABLE = "FLEETNAS_PASSWORD"
DEFAULT_FLEET = "default"


def add_identity_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for name, fleet, state folder and configuration."""
    parser.add_argument(
        "--name", help="this agent's name in the fleet (default: the one it had here before, at first the host's)"
    )
    parser.add_argument("--fleet", default=DEFAULT_FLEET, help="which fleet to join (default: %(default)s)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"where bundles and unsent results are kept (default: {DEFAULT_PLACE})",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file (default: ~/.config/fleetnas/agent.conf, else /etc/fleetnas/agent.conf)",
    )


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for address and login of the broker."""
    group = parser.add_argument_group("broker")
    group.add_argument("--broker", metavar="HOST[:PORT]", help="the MQTT broker of the fleet")
    group.add_argument(
        "--credentials",
        type=Path,
        metavar="FILE",
        help="file that `fleetnas enroll` made for this agent: broker, login, fleet, name, and the coordinator's key",
    )
    group.add_argument("--username", help=f"login; its password is ${_PASSWORD_VARIABLE} or in --password-file")
    group.add_argument("--password-file", metavar="FILE", help="file that holds the password")
    group.add_argument("--ca-file", metavar="PEM", help="authority that signed the broker's certificate")
    group.add_argument("--certificate-file", metavar="PEM", help="this agent's own certificate")
    group.add_argument("--key-file", metavar="PEM", help="key of this agent's certificate")


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for a single device setting; the command adds the runtime."""
    group = parser.add_argument_group("device setting")
    group.add_argument("--provider", help="execution provider or delegate (default: cpu)")
    group.add_argument("--threads", type=positive, help="threads of one inference (default: 1)")
    group.add_argument("--precision", choices=("fp32", "int8"), help="(default: fp32)")
    group.add_argument(
        "--graph-optimisation",
        choices=("all", "extended", "basic", "disabled"),
        help="onnxruntime's graph optimisation level (default: all)",
    )
    group.add_argument("--affinity", metavar="CORES", help="cores to pin to, such as 4-7 or 0+2 (default: not pinned)")


def with_credentials(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options together with the credentials file, if there is one, as `identity`.

    The file sets name, fleet, login and pinned keys. Raises `UsageError` if other options contradict it.
    """
    if getattr(options, "credentials", None) is None:
        return _changed(options, identity=None)
    from fleetnas.fleet_protocol.security.credentials import read_credentials

    found = read_credentials(Path(options.credentials), "agent")
    for option, given, own in (
        ("--name", options.name, found.name),
        ("--fleet", options.fleet if options.fleet != DEFAULT_FLEET else None, found.fleet),
    ):
        if given is not None and given != own:
            raise UsageError(
                f"{option} {given} contradicts {options.credentials}, which are for {own}; leave {option} out, or "
                "enroll this agent anew"
            )
    login = ("username", "password_file", "ca_file", "certificate_file", "key_file")
    superfluous = [key for key in login if getattr(options, key) is not None]
    if superfluous:
        raise UsageError(f"the credentials hold the whole login; leave out --{superfluous[0].replace('_', '-')}")
    broker = options.broker or str(found.broker)
    return _changed(options, identity=found, name=found.name, fleet=found.fleet, broker=broker)


def trusted_keys(options: argparse.Namespace) -> tuple[bytes, ...]:
    """Return the keys, one of which must have signed every order; empty if every coordinator is trusted."""
    identity: Credentials | None = options.identity
    return identity.trusted_keys if identity is not None else ()


def broker_address(options: argparse.Namespace) -> BrokerAddress:
    """Return address and login of the broker; `UsageError` if none was named."""
    if not options.broker:
        raise UsageError(
            "no broker was named; give --broker HOST[:PORT] or --credentials FILE, set $FLEETNAS_BROKER, or write "
            "`broker = HOST` in the configuration file"
        )
    identity: Credentials | None = options.identity
    address = BrokerAddress.parse(options.broker, identity.port if identity is not None else None)
    if identity is not None:
        # The broker may be reached by another name than the one in the file; its certificate still has to fit.
        return dataclasses.replace(identity.broker, host=address.host, port=address.port)
    if options.password_file is not None and options.username is None:
        raise UsageError("the password of --password-file is for a login; give its --username too")
    return dataclasses.replace(
        address,
        username=options.username,
        password=_password(options.password_file),
        ca_file=options.ca_file,
        certificate_file=options.certificate_file,
        key_file=options.key_file,
    )


def chosen_settings(options: argparse.Namespace, configured: list[str]) -> list[RuntimeSetting]:
    """Return the settings to offer: those of the command line, else the configured ones, else the default one."""
    from fleetnas.agent.runtimes.settings import installed_runtime, parse_setting

    keys = ("provider", "threads", "precision", "graph_optimisation", "affinity")
    given = [f"{key}={getattr(options, key)}" for key in keys if getattr(options, key) is not None]
    several = getattr(options, "setting", None)
    if several and (options.runtime or given):
        raise UsageError("--setting describes a whole setting; leave out --runtime, --threads and the like")
    if not several and (options.runtime or given):
        several = [",".join([options.runtime or installed_runtime(), *given])]
    texts = several or configured or [installed_runtime()]
    return list(dict.fromkeys(parse_setting(text) for text in texts))


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def yes_or_no(text: str) -> bool:
    """Parse `yes` or `no`, as a configuration file has it."""
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.strip().lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return known[text.strip().lower()]


def duration(text: str) -> float:
    """Parse a duration such as `90s`, `30m`, `1.5h` or `1h30m`; return seconds."""
    try:
        total_s = 0.0 if text.strip()[-1:].isdigit() else seconds(text)  # a number alone may mean minutes
    except ValueError:
        total_s = 0.0
    if total_s <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 30m, 1h or 1h30m")
    return total_s


def set_defaults(parser: argparse.ArgumentParser, values: dict[str, str]) -> None:
    """Make configured values the defaults of the options that `parser` has."""
    known = {key: value for key, value in values.items() if key in KEYS and key not in ("settings", "tags")}
    parser.set_defaults(**known)


def _changed(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changes})


def _password(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(_PASSWORD_VARIABLE)
    try:
        return read_text(Path(file)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the password file {file} cannot be read: {reason_of(error)}; check --password-file"
        ) from error

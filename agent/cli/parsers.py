"""The parsers of `fleetnas-agent`; only the options of the command that was asked for are loaded."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean

_AddOptions = Callable[[argparse.ArgumentParser], None]
_CHOICE = re.compile(r"argument ([^:]+): invalid choice: '(.*)' \(choose from (.*)\)")
_UNKNOWN = "unrecognized arguments: "
_REQUIRED = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` for a command line that cannot be used."""
        raise UsageError(f"{_in_our_words(message, self.prog)}; see `{self.prog} --help`")


class _Version(argparse.Action):
    """Looks the version up only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        sys.stdout.write(f"fleetnas-agent {metadata.version('fleetnas')}\n")
        parser.exit()


@dataclass(frozen=True)
class _Command:
    """A command as the list shows it, and the function that loads its texts and its options."""

    summary: str
    load: Callable[[], tuple[_AddOptions, dict[str, Any]]]
    """Returns the function that adds the options, and settings of the parser."""


def _run() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.run import RUN_DESCRIPTION, RUN_EPILOG, add_run_options

    return add_run_options, _raw(RUN_DESCRIPTION, RUN_EPILOG)


def _bench() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.bench import BENCH_DESCRIPTION, BENCH_EPILOG, add_bench_options

    return add_bench_options, _raw(BENCH_DESCRIPTION, BENCH_EPILOG)


def _doctor() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.doctor.command import add_doctor_options

    return add_doctor_options, {
        "description": "Check Python, runtimes, sensors, the state folder, the broker and every setting that `run` "
        "would offer with the same options and configuration; print a command that fixes each trouble."
    }


def _status() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.status import add_status_options

    return add_status_options, {"description": "Read the state folder; disturb nothing."}


def _configure() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.configure import add_configure_options

    return add_configure_options, {
        "description": "Write broker, login, fleet, name and settings to the configuration file, beside what it has; "
        "`run` and `doctor` need no options then."
    }


def _install() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.installation.command import add_install_options

    return add_install_options, {
        "description": "Write a hardened systemd unit and its configuration, start the service, and print each step."
    }


def _uninstall() -> tuple[_AddOptions, dict[str, Any]]:
    from fleetnas.agent.cli.installation.command import add_uninstall_options

    return add_uninstall_options, {"description": "Stop and remove the service; keep its state."}


_COMMANDS = {
    "run": _Command("serve a fleet from this device", _run),
    "bench": _Command("measure a model file", _bench),
    "doctor": _Command("find out what keeps this device from measuring", _doctor),
    "status": _Command("show the agents of this host and their results", _status),
    "configure": _Command("write this agent's configuration file", _configure),
    "install-service": _Command("run the agent as a systemd service", _install),
    "uninstall-service": _Command("remove the systemd service", _uninstall),
}


def build_parser(only: str | None = None) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Return the whole command line, and the parser of each command by name.

    With `only`, the other commands have no options: it is the command that will be parsed.
    """
    parser = Parser(prog="fleetnas-agent", description="Measures subnets of a once-for-all supernet on this device.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command_name")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in _COMMANDS.items():
        if only is not None and name != only:
            commands.add_parser(name, help=command.summary)
            continue
        add_options, settings = command.load()
        parsers[name] = commands.add_parser(name, help=command.summary, **settings)
        add_options(parsers[name])
    return parser, parsers


def command_of(arguments: Sequence[str]) -> str:
    """Return the command that arguments begin with; empty where there is none."""
    return next((word for word in arguments if not word.startswith("-")), "")


def unknown_option(word: str, parser: argparse.ArgumentParser) -> UsageError:
    """Make the error about a word that a command has no use for."""
    if not word.startswith("-"):
        return UsageError(f"`{parser.prog}` has no use for {word!r}; leave it out; see `{parser.prog} --help`")
    name = word.partition("=")[0]
    known = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    near = did_you_mean(name, known)
    return UsageError(f"`{parser.prog}` has no option {name}{near} `{parser.prog} --help` lists all")


def _raw(description: str, epilog: str) -> dict[str, Any]:
    return {
        "description": description,
        "epilog": epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _in_our_words(message: str, program: str) -> str:
    choice = _CHOICE.fullmatch(message)
    if choice is not None:
        names = [each.strip(" '\"") for each in choice[3].split(",")]
        near = did_you_mean(choice[2], names, otherwise="")
        if choice[1] == "COMMAND":
            return f"`{program}` has no command {choice[2]!r}{near or '; there are ' + ', '.join(names)}"
        return f"{choice[1]} {choice[2]!r} is none of {', '.join(names)}{near}"
    if message.startswith(_REQUIRED):
        return f"`{program}` needs {message.removeprefix(_REQUIRED)}"
    return message.removeprefix("argument ").removeprefix(_UNKNOWN)

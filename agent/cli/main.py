"""The command line `fleetnas-agent`: its parser, its commands, its exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from fleetnas.agent.cli.bench import BENCH_DESCRIPTION, BENCH_EPILOG, add_bench_options
from fleetnas.agent.cli.configuration import read_configuration, settings_of
from fleetnas.agent.cli.doctor.command import add_doctor_options
from fleetnas.agent.cli.installation.command import add_install_options, add_uninstall_options
from fleetnas.agent.cli.log_lines import write_error
from fleetnas.agent.cli.options import set_defaults, with_credentials
from fleetnas.agent.cli.run import RUN_DESCRIPTION, RUN_EPILOG, add_run_options
from fleetnas.agent.cli.status import add_status_options
from fleetnas.device_profiles.plain_text import use_printable_streams
from fleetnas.fleet_protocol.errors import FleetnasError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: with 0, with 1 if something is broken, with 2 if the request cannot be fulfilled."""
    use_printable_streams()
    try:
        options = parse_options(arguments)
        code = options.command(options)
        sys.stdout.flush()
        sys.exit(code)
    except FleetnasError as error:
        write_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does; without this, Python would report it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:  # such as a folder that is closed to us, or a full disk
        if error.filename is None:
            raise
        write_error(f"{error.filename}: {error.strerror}; check the path and who may use it")
        sys.exit(1)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line, of the environment and of the configuration file, in this order.

    `configured_settings` and `configured_tags` hold what is configured. Raises `UsageError` if a value cannot be used.
    """
    parser, subparsers = build_parser()
    options = parser.parse_args(arguments)
    if "config" not in options:
        return options
    values = read_configuration(options.config, os.environ)
    set_defaults(subparsers[options.command_name], values)
    options = parser.parse_args(arguments)
    configured = {"configured_settings": settings_of(values), "configured_tags": values.get("tags", "")}
    return with_credentials(argparse.Namespace(**vars(options), **configured))


class _Version(argparse.Action):
    """Looks the version up only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(f"fleetnas-agent {metadata.version('fleetnas')}\n")
        parser.exit()


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the whole command line, and the parser of each command by name."""
    parser = argparse.ArgumentParser(
        prog="fleetnas-agent", description="Measures subnets of a once-for-all supernet on this device."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command_name")
    run = commands.add_parser(
        "run",
        help="serve a fleet from this device",
        description=RUN_DESCRIPTION,
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench = commands.add_parser(
        "bench",
        help="measure a model file",
        description=BENCH_DESCRIPTION,
        epilog=BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor = commands.add_parser(
        "doctor",
        help="find out what keeps this device from measuring",
        description="Check Python, runtimes, sensors, the state folder, the broker and every setting that `run` would "
        "offer with the same options and configuration; print a command that fixes each trouble.",
    )
    status = commands.add_parser(
        "status",
        help="show the agents of this host and their results",
        description="Read the state folder; disturb nothing.",
    )
    install = commands.add_parser(
        "install-service",
        help="run the agent as a systemd service",
        description="Write a hardened systemd unit and its configuration, start the service, and print each step.",
    )
    uninstall = commands.add_parser(
        "uninstall-service",
        help="remove the systemd service",
        description="Stop and remove the service; keep its state.",
    )
    add_run_options(run)
    add_bench_options(bench)
    add_doctor_options(doctor)
    add_status_options(status)
    add_install_options(install)
    add_uninstall_options(uninstall)
    return parser, {"run": run, "bench": bench, "doctor": doctor, "status": status}


if __name__ == "__main__":
    main()

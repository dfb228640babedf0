"""The command line `fleetnas-agent`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from fleetnas.agent.cli.bench import BENCH_DESCRIPTION, BENCH_EPILOG, add_bench_options
from fleetnas.agent.cli.configuration import read_configuration, settings_of
from fleetnas.agent.cli.log_lines import LOG_LEVELS, begin_logging, check_log_level, write_last_words
from fleetnas.agent.cli.options import (
    NoRuntimeError,
    add_broker_options,
    add_identity_options,
    add_setting_options,
    broker_address,
    chosen_settings,
    configure,
    positive,
    take_credentials,
    trusted_keys,
)
from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.measuring.lifetime import die_with
from fleetnas.agent.runtimes.settings import RUNTIMES
from fleetnas.agent.service.state_folder import DEFAULT_PLACE, default_state_folder
from fleetnas.device_profiles.plain_text import use_printable_streams
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.topics import Topics, check_name

_RUN_DESCRIPTION = """\
Announce this device to a fleet, measure the subnets that it is given, and send the results.

The agent serves until it is stopped (Ctrl-C or SIGTERM) and reconnects by itself. Results wait on disk until the
coordinator has stored them, so it may be killed at any time."""

_RUN_EPILOG = """\
settings:
  A setting is how a model is run. Without --setting there is one, made of --runtime, --threads and the like. With
  --setting, repeated, the agent offers several:
    --setting onnxruntime,threads=1 --setting litert,threads=4,affinity=4-7
  keys: provider, threads, precision, graph_optimisation, affinity

configuration:
  Every option may stand in the configuration file, [agent] its section, or in the environment:
    broker = 192.168.1.10        FLEETNAS_BROKER=192.168.1.10

examples:
  fleetnas-agent run --broker 192.168.1.10
  fleetnas-agent run --credentials pi4.credentials
  fleetnas-agent run --broker fleet.example:8883 --username pi4 --ca-file ca.pem --threads 4"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (something is broken) or 2 (something was asked for that cannot be)."""
    use_printable_streams()
    try:
        parser, subparsers = build_parser()
        options = parser.parse_args(arguments)
        options.configured_settings = []
        if "config" in options:
            values = read_configuration(options.config, os.environ)
            configure(subparsers[options.command_name], values)
            options = parser.parse_args(arguments)
            options.configured_settings = settings_of(values)
            take_credentials(options)
        code = options.command(options)
        sys.stdout.flush()
        sys.exit(code)
    except FleetnasError as error:
        write_last_words(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough, such as `head`; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:  # such as a folder that is closed to us, or a full disk
        if error.filename is None:
            raise
        write_last_words(f"{error.filename}: {error.strerror}; check the path and who may use it")
        sys.exit(1)


class _Version(argparse.Action):
    """Looks the version up when it is asked for: nothing else needs it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(f"fleetnas-agent {metadata.version('fleetnas')}\n")
        parser.exit()


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole command line, and the parser of each command by name."""
    parser = argparse.ArgumentParser(
        prog="fleetnas-agent", description="Measures subnets of a once-for-all supernet on this device."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command_name")
    run = commands.add_parser(
        "run",
        help="serve a fleet from this device",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
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
        "offer with the same options and configuration; print what mends each trouble.",
    )
    status = commands.add_parser(
        "status", help="show what the agents of this host hold", description="Read the state folder; disturb nothing."
    )
    install = commands.add_parser(
        "install-service",
        help="run the agent as a systemd service",
        description="Write a hardened systemd unit and its configuration, start the service, and say what was done.",
    )
    uninstall = commands.add_parser(
        "uninstall-service",
        help="remove the systemd service",
        description="Stop and remove the service; keep its state.",
    )
    _add_run(run)
    add_bench_options(bench)
    _add_doctor(doctor)
    _add_status(status)
    _add_install(install)
    _add_uninstall(uninstall)
    return parser, {"run": run, "bench": bench, "doctor": doctor, "status": status}


def _add_run(run: argparse.ArgumentParser) -> None:
    run.set_defaults(command=_run)
    _add_agent_options(run)
    run.add_argument("--parent", type=int, metavar="PID", help="stop when that process, which started this one, ends")
    run.add_argument("--once", action="store_true", help="end with the first search that gave it work")


def _add_agent_options(run: argparse.ArgumentParser) -> None:
    """What `run` serves a fleet with, and `doctor` checks."""
    add_identity_options(run)
    add_broker_options(run)
    run.add_argument("--runtime", choices=RUNTIMES, help="(default: the one that is installed)")
    add_setting_options(run)
    run.add_argument("--setting", action="append", metavar="SETTING", help="a whole setting to offer, see below")
    run.add_argument("--cache-mb", type=positive, default=2048, metavar="MB", help="cap of the cache (%(default)s)")
    run.add_argument(
        "--memory-limit-mb",
        type=positive,
        metavar="MB",
        help="memory the measuring child may allocate (default: four fifths of this device's)",
    )
    rule = BatteryRule()
    run.add_argument(
        "--min-battery",
        type=float,
        default=rule.min_percent,
        metavar="PERCENT",
        help="rest below this level while on battery; 0: never (%(default)g)",
    )
    run.add_argument(
        "--max-charging-temperature",
        type=float,
        default=rule.max_charging_c,
        metavar="C",
        help="rest while the battery charges at this temperature or above (%(default)g)",
    )
    run.add_argument(
        "--connect-timeout",
        type=float,
        metavar="S",
        help="fail when the broker was not reached by then (default: go on trying)",
    )
    run.add_argument(
        "--bundle-mirrors",
        metavar="POLICY",
        help="whether a bundle may be fetched from the mirror that a task names: off, https, or any, which takes http "
        "as well (default: https where the coordinator's key is pinned, else off)",
    )
    run.add_argument("--log-level", default="info", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (%(default)s)")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.set_defaults(command=_doctor)
    _add_agent_options(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def _add_status(status: argparse.ArgumentParser) -> None:
    status.set_defaults(command=_status)
    status.add_argument("--state-dir", type=Path, metavar="DIR", help=f"(default: {DEFAULT_PLACE})")
    status.add_argument("--json", action="store_true", help="print one JSON object")


def _add_install(install: argparse.ArgumentParser) -> None:
    install.set_defaults(command=_install)
    add_broker_options(install)
    install.add_argument("--name", help="this agent's name in the fleet (default: the host's name)")
    install.add_argument("--fleet", help="which fleet to join (default: default)")
    install.add_argument("--setting", action="append", metavar="SETTING", help="a setting to offer, as for `run`")
    install.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="write below DIR, start nothing")
    install.add_argument("--no-start", action="store_true", help="enable the service, but do not start it now")


def _add_uninstall(uninstall: argparse.ArgumentParser) -> None:
    uninstall.set_defaults(command=_uninstall)
    uninstall.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="remove below DIR")


def _run(options: argparse.Namespace) -> int:
    from fleetnas.agent.service.own_name import own_name, remember_name
    from fleetnas.agent.service.running import RunOptions, mirrors_beside, run_agent
    from fleetnas.agent.transfer.mirror import mirror_policy

    begin_logging(options.log_level)
    if options.parent is not None:
        die_with(options.parent, signal.SIGTERM)
    broker, keys = broker_address(options), trusted_keys(options)
    state_folder = options.state_dir or default_state_folder()
    name = options.name or own_name(state_folder, options.fleet)
    if not options.name:
        remember_name(state_folder, name)
    run_agent(
        RunOptions(
            broker=broker,
            name=name,
            settings=chosen_settings(options, options.configured_settings),
            state_folder=state_folder,
            fleet=options.fleet,
            cache_bytes=options.cache_mb * 1024**2,
            memory_limit_bytes=_memory_limit_bytes(options),
            battery=_battery_rule(options),
            connect_timeout_s=options.connect_timeout,
            once=options.once,
            trusted_keys=keys,
            mirrors=mirrors_beside(broker, mirror_policy(options.bundle_mirrors, signed=bool(keys))),
        )
    )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fleetnas.agent.cli.doctor import DoctorContext, report_line, report_object, run_checks, worst
    from fleetnas.agent.service.own_name import own_name
    from fleetnas.agent.transfer.mirror import mirror_policy

    # As `run` reads them, so that what it would refuse is refused here.
    check_log_level(options.log_level)
    mirror_policy(options.bundle_mirrors, signed=bool(trusted_keys(options)))
    state_folder = options.state_dir or default_state_folder()
    context = DoctorContext(
        state_folder=state_folder,
        fleet=Topics(options.fleet).fleet,
        name=check_name(options.name or own_name(state_folder, options.fleet), "agent name"),
        broker=broker_address(options) if options.broker else None,
        settings=_settings_to_check(options),
        memory_limit_bytes=_memory_limit_bytes(options),
        battery=_battery_rule(options),
    )
    findings = []
    for finding in run_checks(context):
        findings.append(finding)
        if not options.json:
            sys.stdout.write(report_line(finding) + "\n")
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(report_object(findings)) + "\n")
    return 1 if worst(findings) == "broken" else 0


def _status(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fleetnas.agent.cli.host_status import host_standing, standing_lines

    standing = host_standing(options.state_dir or default_state_folder())
    text = json.dumps(asdict(standing)) if options.json else "\n".join(standing_lines(standing))
    sys.stdout.write(text + "\n")
    return 0


def _install(options: argparse.Namespace) -> int:
    from fleetnas.agent.cli.installation import Installation, install, run_program

    keys = (
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
    values = {key: str(getattr(options, key)) for key in keys if getattr(options, key)}
    if options.setting:
        values["settings"] = "\n".join(options.setting)
    done = install(Installation(options.root), values, start=not options.no_start, run=run_program)
    sys.stdout.write("".join(f"{line}\n" for line in done))
    return 0


def _uninstall(options: argparse.Namespace) -> int:
    from fleetnas.agent.cli.installation import Installation, run_program, uninstall

    sys.stdout.write("".join(f"{line}\n" for line in uninstall(Installation(options.root), run=run_program)))
    return 0


def _settings_to_check(options: argparse.Namespace) -> tuple[RuntimeSetting, ...]:
    """Those that `run` would offer; none where it would find no runtime, which the doctor says by itself."""
    try:
        return tuple(chosen_settings(options, options.configured_settings))
    except NoRuntimeError:
        return ()


def _memory_limit_bytes(options: argparse.Namespace) -> int:
    from fleetnas.agent.service.running import default_memory_limit_bytes

    return options.memory_limit_mb * 1024**2 if options.memory_limit_mb else default_memory_limit_bytes()


def _battery_rule(options: argparse.Namespace) -> BatteryRule:
    try:
        return BatteryRule(min_percent=options.min_battery, max_charging_c=options.max_charging_temperature)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"battery rule: {first['loc'][0]}: {first['msg']}; the defaults are 30 % and 40 C") from None


if __name__ == "__main__":
    main()

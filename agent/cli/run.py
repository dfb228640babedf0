"""The command `fleetnas-agent run`: its options, which `doctor` shares, and their meaning."""

from __future__ import annotations

import argparse
import signal

from pydantic import ValidationError

from fleetnas.agent.cli.log_lines import LOG_LEVELS, begin_logging
from fleetnas.agent.cli.options import (
    add_broker_options,
    add_identity_options,
    add_setting_options,
    broker_address,
    chosen_settings,
    positive,
    trusted_keys,
    yes_or_no,
)
from fleetnas.agent.cli.tags import chosen_tags
from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.host.process_lifetime import die_with
from fleetnas.agent.runtimes.settings import RUNTIMES
from fleetnas.agent.service.state_folder import default_state_folder
from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError

RUN_DESCRIPTION = """\
Announce this device to a fleet, measure the subnets that it is given, and send the results.

The agent serves until it is stopped (Ctrl-C or SIGTERM) and reconnects by itself. Results wait on disk until the
coordinator has stored them, so it may be killed at any time."""

RUN_EPILOG = """\
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


def add_run_options(run: argparse.ArgumentParser) -> None:
    """Add all options of `run`."""
    run.set_defaults(command=run_command)
    add_agent_options(run)
    run.add_argument("--parent", type=int, metavar="PID", help="stop when that process, which started this one, ends")
    run.add_argument(
        "--tag",
        action="append",
        metavar="TAG",
        help="a name for this device and others, such as camera: `fleetnas search --devices tag:camera` takes them; "
        "may be repeated. Boards with one tag class:NAME are searched as one device (docs/pooling.md)",
    )
    run.add_argument("--once", action="store_true", help="end with the first search that sent a task")


def add_agent_options(run: argparse.ArgumentParser) -> None:
    """Add the options with which `run` serves a fleet and which `doctor` checks."""
    add_identity_options(run)
    add_broker_options(run)
    run.add_argument("--runtime", choices=RUNTIMES, help="(default: the one that is installed)")
    add_setting_options(run)
    run.add_argument("--setting", action="append", metavar="SETTING", help="a whole setting to offer, see below")
    limits = run.add_argument_group("limits and logging")
    limits.add_argument("--cache-mb", type=positive, default=2048, metavar="MB", help="cap of the cache (%(default)s)")
    limits.add_argument(
        "--memory-limit-mb",
        type=positive,
        metavar="MB",
        help="memory the measuring child may allocate (default: four fifths of this device's)",
    )
    rule = BatteryRule()
    limits.add_argument(
        "--min-battery",
        type=float,
        default=rule.min_percent,
        metavar="PERCENT",
        help="rest below this level while on battery; 0: never (%(default)g)",
    )
    limits.add_argument(
        "--max-charging-temperature",
        type=float,
        default=rule.max_charging_c,
        metavar="C",
        help="rest while the battery charges at this temperature or above (%(default)g)",
    )
    limits.add_argument(
        "--connect-timeout",
        type=float,
        metavar="S",
        help="fail if the broker is not reached within this time (default: go on trying)",
    )
    limits.add_argument(
        "--bundle-mirrors",
        metavar="POLICY",
        help="whether a bundle may be fetched from the mirror that a task names: off, https, or any, which takes http "
        "as well (default: https where the coordinator's key is pinned, else off)",
    )
    limits.add_argument(
        "--accept-models",
        type=yes_or_no,
        nargs="?",
        const=True,
        default=False,
        metavar="yes|no",
        help="also measure model files (.onnx, .tflite) that the coordinator sends, for its --baseline and `fleetnas "
        "bench`: the runtime then reads files that this agent did not build itself (default: no)",
    )
    limits.add_argument("--log-level", default="info", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (%(default)s)")


def run_command(options: argparse.Namespace) -> int:
    """Serve a fleet until a signal; return the exit code."""
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
            memory_limit_bytes=memory_limit_bytes(options),
            battery=battery_rule(options),
            connect_timeout_s=options.connect_timeout,
            once=options.once,
            tags=chosen_tags(options.tag, options.configured_tags),
            trusted_keys=keys,
            accept_models=options.accept_models,
            mirrors=mirrors_beside(broker, mirror_policy(options.bundle_mirrors, signed=bool(keys))),
        )
    )
    return 0


def memory_limit_bytes(options: argparse.Namespace) -> int:
    """Return the memory limit of the measuring child, in bytes; 0 if there is none."""
    from fleetnas.agent.service.running import default_memory_limit_bytes

    return options.memory_limit_mb * 1024**2 if options.memory_limit_mb else default_memory_limit_bytes()


def battery_rule(options: argparse.Namespace) -> BatteryRule:
    """Return the battery rule; `UsageError` if a bound is impossible."""
    try:
        return BatteryRule(min_percent=options.min_battery, max_charging_c=options.max_charging_temperature)
    except ValidationError as error:
        raise UsageError(f"battery rule: {first_fault(error)}; the defaults are 30 % and 40 C") from None

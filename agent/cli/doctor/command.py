"""The command `fleetnas-agent doctor`."""

from __future__ import annotations

import argparse
import json
import sys

from fleetnas.agent.cli.log_lines import check_log_level
from fleetnas.agent.cli.options import broker_address, chosen_settings, trusted_keys
from fleetnas.agent.cli.run import add_agent_options, battery_rule, memory_limit_bytes
from fleetnas.agent.runtimes.settings import NoRuntimeError
from fleetnas.agent.service.state_folder import default_state_folder
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.fleet_protocol.topics import Topics, check_name


def add_doctor_options(doctor: argparse.ArgumentParser) -> None:
    """Add all options of `doctor`."""
    doctor.set_defaults(command=doctor_command)
    add_agent_options(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def doctor_command(options: argparse.Namespace) -> int:
    """Run every check and print the findings; return the exit code, 1 if something is broken."""
    from fleetnas.agent.cli.doctor.checks import run_checks
    from fleetnas.agent.cli.doctor.finding import DoctorContext, report_line, report_object, worst
    from fleetnas.agent.service.own_name import own_name
    from fleetnas.agent.transfer.mirror import mirror_policy

    # Options that `run` refuses are refused here too.
    check_log_level(options.log_level)
    mirror_policy(options.bundle_mirrors, signed=bool(trusted_keys(options)))
    state_folder = options.state_dir or default_state_folder()
    context = DoctorContext(
        state_folder=state_folder,
        fleet=Topics(options.fleet).fleet,
        name=check_name(options.name or own_name(state_folder, options.fleet), "agent name"),
        broker=broker_address(options) if options.broker else None,
        settings=_settings_to_check(options),
        memory_limit_bytes=memory_limit_bytes(options),
        battery=battery_rule(options),
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


def _settings_to_check(options: argparse.Namespace) -> tuple[RuntimeSetting, ...]:
    """The settings that `run` would offer; none without a runtime, which the runtime check reports."""
    try:
        return tuple(chosen_settings(options, options.configured_settings))
    except NoRuntimeError:
        return ()

"""Run every check of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fleetnas.agent.cli.doctor.broker import check_broker
from fleetnas.agent.cli.doctor.device import check_clock, check_device, check_memory, check_processor, check_sensors
from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding, finding_of
from fleetnas.agent.cli.doctor.runtimes import check_python, check_runtimes
from fleetnas.agent.cli.doctor.settings import check_settings
from fleetnas.agent.cli.doctor.storage import check_host_lock, check_state_folder, check_temporary_files
from fleetnas.fleet_protocol.errors import FleetnasError


def run_checks(context: DoctorContext) -> Iterator[Finding]:
    """Run every check and yield each finding as it is made; a check that raises becomes a finding."""
    checks: tuple[Callable[[DoctorContext], Iterator[Finding]], ...] = (
        check_python,
        check_runtimes,
        check_device,
        check_sensors,
        check_memory,
        check_processor,
        check_temporary_files,
        check_state_folder,
        check_settings,
        check_host_lock,
        check_clock,
        check_broker,
    )
    for check in checks:
        yield from _guarded(check, context)


def _guarded(check: Callable[[DoctorContext], Iterator[Finding]], context: DoctorContext) -> Iterator[Finding]:
    """Contain a defect of one check, so that the findings of the others are seen."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        yield from check(context)
    except FleetnasError as error:
        yield finding_of(name, error)
    except Exception as error:  # noqa: BLE001 - a defect of one check is one finding
        text = f"could not be checked: {type(error).__name__}: {error}"
        yield Finding(name, "broken", text, "report this line to fleetnas: it is a defect of the doctor")

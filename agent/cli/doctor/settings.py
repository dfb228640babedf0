"""Check every setting that `run` would offer, in a child like that of `run`."""

from __future__ import annotations

from collections.abc import Iterator

from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding, Status
from fleetnas.agent.cli.doctor.probing import failure_of, probe
from fleetnas.agent.host.limits import core_list, read_limits, thread_objection
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import PhaseReply, ProbedReply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.state_folder import StateFolder
from fleetnas.device_profiles.profile import DeviceProfile


def check_settings(context: DoctorContext) -> Iterator[Finding]:
    """Try each setting in a child like that of `run`."""
    engines = StateFolder(context.state_folder, context.fleet, context.name).engines
    worker = Worker(child_command(default_host_lock_path(), context.memory_limit_bytes, engines))
    limits = read_limits()
    devices: dict[DeviceProfile | None, str] = {}
    try:
        for setting in context.settings:
            reply = probe(worker, setting)
            if not isinstance(reply, ProbedReply):
                worker.kill()
                status: Status = "warning" if isinstance(reply, PhaseReply) else "broken"
                fix = f"change or leave out the setting {setting.label}, or remove the cause that it names"
                yield Finding("setting", status, f"{setting.label}: {failure_of(reply)}", fix)
                continue
            devices.setdefault(reply.device, setting.label)
            where = f" of {reply.device.model}" if reply.device is not None else ""
            cores = f", cores {core_list(reply.cores)}" if reply.cores else ""
            text = f"{setting.label} runs on {reply.active_provider}{where}{cores}"
            if objection := thread_objection(setting, limits):
                fault, _, fix = objection.partition(": ")
                yield Finding("setting", "warning", fault, fix)
            else:
                yield Finding("setting", "ok", text)
    finally:
        worker.kill()
    if len(devices) > 1:
        text = f"{' and '.join(devices.values())} run on different devices, and an agent is one device"
        yield Finding("settings", "broken", text, "start one agent per device, each with a --name")

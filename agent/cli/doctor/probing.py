"""Try a setting in a measuring child, as `run` would."""

from __future__ import annotations

from fleetnas.agent.measuring.messages import FailedReply, PhaseReply, ProbeOrder, Reply
from fleetnas.agent.measuring.worker import Worker
from fleetnas.fleet_protocol.messages import RuntimeSetting

PROBE_TIMEOUT_S = 120.0


def probe(worker: Worker, setting: RuntimeSetting) -> Reply | None:
    """Probe a setting; return the final reply, or a `PhaseReply` if another agent keeps the host's lock too long."""
    worker.submit(ProbeOrder(setting=setting, micro_benchmarks=False))
    phase: PhaseReply | None = None
    while isinstance(reply := worker.poll(PROBE_TIMEOUT_S), PhaseReply):
        phase = reply
    return phase if reply is None and phase is not None and phase.phase == "waiting" else reply


def failure_of(reply: Reply | None) -> str:
    """Return why a probe gave no `ProbedReply`."""
    if isinstance(reply, PhaseReply):
        return f"not tested: another agent of this host has been measuring for {PROBE_TIMEOUT_S:g} s"
    return reply.detail if isinstance(reply, FailedReply) else f"no answer within {PROBE_TIMEOUT_S:g} s"

"""Gather the `AgentInfo` that an agent announces: its device, its settings and what each setting's runtime can do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleetnas.agent.host.device import board_versions, describe_device, installed_versions
from fleetnas.agent.host.host_mark import host_mark
from fleetnas.agent.host.limits import allowed_cores
from fleetnas.agent.host.power import find_power_meter
from fleetnas.agent.host.process_lifetime import is_alive
from fleetnas.agent.measuring.messages import FailedReply, PhaseReply, ProbedReply, ProbeOrder, Reply, UnreadyReply
from fleetnas.agent.measuring.worker import Measurer, replies_of
from fleetnas.agent.runtimes.settings import IN_PROCESS
from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

#: A probe takes about a second; an emulated processor, hundreds of times that.
_PROBE_TIMEOUT_S = 600.0
#: Probes that are kept; each change of a version or of a board's power mode adds one.
MAX_PROBES = 64

_log = logging.getLogger("fleetnas.agent")


class _Probed(BaseModel):
    """Result of a setting's probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_benchmarks: MicroBenchmarks
    device: DeviceProfile | None = None


def agent_info(
    name: str,
    session: int,
    settings: Sequence[RuntimeSetting],
    measurer: Measurer,
    cache: Path,
    root: Path = Path("/"),
    tags: tuple[str, ...] = (),
) -> AgentInfo:
    """Return everything that an agent announces about itself.

    The measuring child runs a model with every setting, and the micro-benchmarks with the first one: once per setting,
    runtime build and set of cores that this process may use. The results are kept in the folder `cache`.

    Raises `RuntimeUnavailableError`, or `UsageError` for a setting that this device cannot have, with a next action.
    """
    versions = {what: version[:64] for what, version in (installed_versions() | board_versions(root)).items()}
    probed = [
        _probe_setting(setting, measurer, cache, versions, allowed_cores(root), full=place == 0)
        for place, setting in enumerate(settings)
    ]
    driven = {found.device for found in probed if found.device is not None}
    if driven and (len(driven) > 1 or any(found.device is None for found in probed)):
        raise UsageError(
            "an agent is one device, and these settings run on several; start one agent per device, each with a --name"
        )
    profile = next(iter(driven)) if driven else describe_device(root)
    profile = profile.model_copy(update={"micro_benchmarks": probed[0].micro_benchmarks})
    # A phone that this host drives is another machine than the host.
    host = "" if driven else host_mark(root)
    return AgentInfo(
        agent=name,
        session=session,
        profile=profile,
        settings=tuple(settings),
        versions=versions,
        tags=tags,
        host=host,
        # A phone that this host drives has no meter that the host could read.
        tells_energy=not driven and find_power_meter(root) is not None,
    )


def _probe_setting(
    setting: RuntimeSetting,
    measurer: Measurer,
    cache: Path,
    versions: dict[str, str],
    cores: tuple[int, ...],
    *,
    full: bool,
) -> _Probed:
    if setting.runtime not in IN_PROCESS:  # another phone may be attached next time
        return _ask(setting, measurer, full=full)
    # Everything that a setting's success may depend on: a probe is valid for exactly what was tried.
    tried = [versions, setting.model_dump(), platform.machine(), cores, full]
    identity = json.dumps(tried, sort_keys=True)
    file = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    try:
        return _Probed.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        pass
    known = _ask(setting, measurer, full=full)
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(known.model_dump_json(), encoding="utf-8")
        os.replace(temporary, file)
        _forget_old_probes(cache)
    except OSError:
        pass  # the next start probes it again
    return known


def _forget_old_probes(cache: Path) -> None:
    """Delete all but the newest probes, and unfinished files of processes that do not live any more."""
    probes = sorted(cache.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    unfinished = (path for path in cache.iterdir() if path.suffix[1:].isdecimal())
    for path in (*probes[:-MAX_PROBES], *(path for path in unfinished if not is_alive(int(path.suffix[1:])))):
        path.unlink()


def _ask(setting: RuntimeSetting, measurer: Measurer, *, full: bool) -> _Probed:
    measurer.submit(ProbeOrder(setting=setting, micro_benchmarks=full))
    reply: Reply | None = None
    for reply in replies_of(measurer, _PROBE_TIMEOUT_S):
        if isinstance(reply, PhaseReply) and reply.detail:
            _log.info("probing %s waits %s", setting.label, reply.detail)
        if isinstance(reply, ProbedReply):
            return _Probed(micro_benchmarks=reply.micro_benchmarks, device=reply.device)
    measurer.kill()
    reason = f"no answer within {_PROBE_TIMEOUT_S:g} s"
    if isinstance(reply, FailedReply):
        reason = reply.detail
    elif isinstance(reply, UnreadyReply):
        reason = reply.reason
    kind = UsageError if isinstance(reply, FailedReply) and reply.usage else RuntimeUnavailableError
    raise kind(f"setting {setting.label} cannot be used on this device: {reason}")

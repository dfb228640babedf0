"""What this device is: board, cores, memory, system, and what its runtimes can do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleetnas.agent.host.jetson import power_mode, tegra_release
from fleetnas.agent.host.limits import allowed_cores, total_memory_bytes
from fleetnas.agent.host.power import find_power_meter
from fleetnas.agent.host.processor import describe_processor
from fleetnas.agent.measuring.lifetime import is_alive
from fleetnas.agent.measuring.messages import FailedReply, PhaseReply, ProbedReply, ProbeOrder, Reply, UnreadyReply
from fleetnas.agent.measuring.worker import Measurer, replies_of
from fleetnas.agent.runtimes.settings import IN_PROCESS
from fleetnas.device_profiles.catalogue import load_catalogue
from fleetnas.device_profiles.profile import DeviceProfile, MicroBenchmarks
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.child_process import child_environment
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

#: A probe takes about a second; an emulated processor, hundreds of times that.
_PROBE_TIMEOUT_S = 600.0
#: Probes that are kept; each change of a version or of a board's power mode makes another.
MAX_PROBES = 64
#: Distributions whose versions can change a latency.
_DISTRIBUTIONS = ("fleetnas", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime")

_log = logging.getLogger("fleetnas.agent")


class _Probed(BaseModel):
    """What a setting's runtime told about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_benchmarks: MicroBenchmarks
    device: DeviceProfile | None = None


def agent_info(
    name: str, session: int, settings: Sequence[RuntimeSetting], measurer: Measurer, cache: Path, root: Path = Path("/")
) -> AgentInfo:
    """Everything an agent announces about itself.

    A model is really run with every setting, in the measuring child: `RuntimeUnavailableError`, or `UsageError` of a
    setting that cannot be, with what to do. That, and the micro-benchmarks of the first setting, are done once per
    setting and runtime build, on the cores that this process may use, and kept in `cache`.
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
    profile = driven.pop() if driven else describe_device(root)
    profile = profile.model_copy(update={"micro_benchmarks": probed[0].micro_benchmarks})
    return AgentInfo(agent=name, session=session, profile=profile, settings=tuple(settings), versions=versions)


def describe_device(
    root: Path = Path("/"), *, model: str = "", machine: str = "", operating_system: str = ""
) -> DeviceProfile:
    """The device's profile from the files under `root`, without micro-benchmarks.

    Of another device than this host, the names are given and the files are copies of its own.
    """
    processor = describe_processor(root)
    machine = machine or platform.machine()
    model = model or _board_name(root) or processor.name or machine or "unknown"
    system = operating_system or _operating_system(root)
    known = load_catalogue().match(model=model, machine=machine, operating_system=system)
    return of_readings(
        DeviceProfile,
        model=model[:128],
        profile=known.name if known is not None else "unknown",
        machine=machine[:32],
        operating_system=system[:128],
        clusters=processor.clusters,
        # Those that may be used here: a container sees the others too, and cannot run on them.
        cores=len(allowed_cores(root)) or sum(cluster.cores for cluster in processor.clusters) or os.cpu_count() or 1,
        vector_extensions=processor.vector_extensions,
        memory_mb=int(memory / 1024**2) or None if (memory := total_memory_bytes(root)) is not None else None,
        accelerator=known.accelerator if known is not None else None,
    )


def installed_versions() -> dict[str, str]:
    """Versions of what a latency depends on; read from package metadata, nothing is imported."""
    installed = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)[:64]
    return installed


def board_versions(root: Path = Path("/")) -> dict[str, str]:
    """What else a result depends on: a Jetson's release and power mode, and the meter that its energy is from."""
    meter = find_power_meter(root)
    release = tegra_release(root)
    found = {
        "linux-for-tegra": release,
        "power-mode": power_mode() if release is not None else None,
        "power-meter": meter.source if meter is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


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
    # Whatever a setting's success may depend on: what was never tried must not be vouched for.
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
        pass  # it is probed again at the next start
    return known


def _forget_old_probes(cache: Path) -> None:
    """Keep the newest probes, and nothing of processes that were killed while they wrote one."""
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
    why = f"no answer within {_PROBE_TIMEOUT_S:g} s"
    if isinstance(reply, FailedReply):
        why = reply.detail
    elif isinstance(reply, UnreadyReply):
        why = reply.reason
    kind = UsageError if isinstance(reply, FailedReply) and reply.usage else RuntimeUnavailableError
    raise kind(f"setting {setting.label} cannot be used on this device: {why}")


def _android(root: Path, name: str) -> str:
    """A system property; empty where this is no Android."""
    program = root / "system/bin/getprop"
    if not program.exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, name],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    return ""


def _board_name(root: Path) -> str:
    if model := _android(root, "ro.product.model"):
        return model
    for place in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if text := _text(root / place):
            return text
    maker, product = (_text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name"))
    placeholders = {"", "To Be Filled By O.E.M.", "System Product Name", "Default string", "None"}
    if product in placeholders:
        return ""
    return product if maker in placeholders or product.startswith(maker) else f"{maker} {product}"


def _operating_system(root: Path) -> str:
    kernel = f"{platform.system()} {platform.release()}"
    if release := _android(root, "ro.build.version.release"):
        return f"Android {release} ({kernel})"
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return f"{line.partition('=')[2].strip(chr(34))} ({kernel})"
    return kernel


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""

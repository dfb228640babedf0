"""`fleetnas-agent doctor`: whether this device can measure and be reached, and the command that mends what cannot."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import util
from pathlib import Path
from typing import Literal

from fleetnas.agent.cli.installation import SERVICE_STATE, UNIT, USER, Installation
from fleetnas.agent.host.battery import BatteryRule
from fleetnas.agent.host.jetson import PowerMode, highest_power_mode, power_mode, tegra_release
from fleetnas.agent.host.limits import core_list, free_memory_bytes, read_limits, thread_objection
from fleetnas.agent.host.probe import describe_device
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.host_lock import ENVIRONMENT_VARIABLE, default_host_lock_path, hold_host_lock
from fleetnas.agent.measuring.messages import FailedReply, PhaseReply, ProbedReply, ProbeOrder, Reply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.own_name import stranded
from fleetnas.agent.service.state_folder import StateFolder, unusable_place
from fleetnas.device_profiles.catalogue import load_catalogue
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.codec import decode, encode
from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError
from fleetnas.fleet_protocol.folders import temporary_folder
from fleetnas.fleet_protocol.messages import AgentState, RuntimeSetting
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

_ACCELERATOR_MENDS = {
    "cuda": "install the CUDA and cuDNN that this build of onnxruntime was made for; on a Jetson: "
    "sudo apt install nvidia-jetpack",
    "tensorrt": "install the TensorRT that this build of onnxruntime was made for; on a Jetson: "
    "sudo apt install nvidia-jetpack",
}
_OTHER_PROVIDER = "use another provider, or install a build of onnxruntime in which this one loads"

Status = Literal["ok", "warning", "broken"]

_MIN_FREE_DISK = 500 * 1024**2
_MIN_FREE_MEMORY_MB = 256
_PROBE_TIMEOUT_S = 120.0
_BROKER_TIMEOUT_S = 10.0
#: Before this, a clock was never set: 2024-01-01.
_PLAUSIBLE_UNIX_S = 1_704_067_200
#: The oldest C library that the runtimes' wheels load on: onnxruntime's and ai-edge-litert's, and tflite-runtime's.
_GLIBC, _GLIBC_32_BIT = (2, 27), (2, 34)
#: Data file of a known device.
_ARM32 = "generic_arm32"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    text: str
    #: The command, or the deed, that mends it; empty where nothing is wrong.
    mend: str = ""


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """What is to be examined."""

    state_folder: Path
    fleet: str
    name: str
    broker: BrokerAddress | None
    #: As `run` would use them.
    settings: tuple[RuntimeSetting, ...] = ()
    memory_limit_bytes: int = 0
    battery: BatteryRule = field(default_factory=BatteryRule)


def run_checks(context: DoctorContext) -> Iterator[Finding]:
    """Every finding, as it is made; none raises."""
    checks: tuple[Callable[[DoctorContext], Iterator[Finding]], ...] = (
        _check_python,
        _check_runtimes,
        _check_device,
        _check_sensors,
        _check_memory,
        _check_processor,
        _check_temporary_files,
        _check_state_folder,
        _check_settings,
        _check_host_lock,
        _check_clock,
        _check_broker,
    )
    for check in checks:
        yield from _guarded(check, context)


def report_line(finding: Finding) -> str:
    """A finding for people; the mending command is on a line of its own, to be copied."""
    line = f"{finding.status:<8} {finding.name:<16} {finding.text}"
    return f"{line}\n{'':<26}-> {finding.mend}" if finding.mend else line


def report_object(findings: list[Finding]) -> dict[str, object]:
    """The findings for programs."""
    return {"status": worst(findings), "checks": [asdict(finding) for finding in findings]}


def worst(findings: list[Finding]) -> Status:
    """The status of the whole."""
    order: tuple[Status, ...] = ("ok", "warning", "broken")
    return max((finding.status for finding in findings), key=order.index, default="ok")


def _guarded(check: Callable[[DoctorContext], Iterator[Finding]], context: DoctorContext) -> Iterator[Finding]:
    """A defect of one check must not hide the findings of the others."""
    name = check.__name__.removeprefix("_check_").replace("_", " ")
    try:
        yield from check(context)
    except FleetnasError as error:
        yield _trouble(name, error)
    except Exception as error:
        text = f"could not be checked: {type(error).__name__}: {error}"
        yield Finding(name, "broken", text, "report this line to fleetnas: it is a defect of the doctor")


def _trouble(name: str, error: FleetnasError) -> Finding:
    """What an error says, and what it says to do."""
    text, _, mend = str(error).partition("; ")
    return Finding(name, "broken", text, mend)


def _check_python(_: DoctorContext) -> Iterator[Finding]:
    library, version = platform.libc_ver()
    system = f"{library or 'unknown C library'} {version}".strip()
    text = f"{platform.python_version()}, {_bits()}-bit, {platform.machine()}, {system}"
    if _bits() == 32:
        yield Finding("python", "warning", f"{text}: only LiteRT has wheels here", "install a 64-bit system if it fits")
    else:
        yield Finding("python", "ok", text)


def _bits() -> int:
    """Of this Python, whatever the kernel: a 32-bit Raspberry Pi OS on a 64-bit kernel calls its machine aarch64."""
    return 8 * struct.calcsize("P")


def install_commands(profile: str, bits: int) -> str:
    """What installs a runtime on a device of this profile under a system of so many bits, where the doctor runs."""
    known = load_catalogue().devices.get(_ARM32 if bits == 32 else profile)
    commands = list(known.install) if known is not None else []
    if bits == 64:
        # There is an environment already. (Under 32 bits it may be one that does not see the system's packages.)
        commands = [text for text in commands if "pip " in text or ("venv" not in text and "/opt/fleetnas" not in text)]
        commands = [re.sub(r"^(/opt/fleetnas/bin/)?pip ", _pip(), text) for text in commands]
    return "; ".join(commands or [f"{_pip()}install 'fleetnas[agent]'"])


def _pip() -> str:
    """This very environment's: the `pip` of the shell is often another's, or none."""
    return f"{sys.executable} -m pip "


def why_no_wheel_fits(library: str, version: str, bits: int, python: tuple[int, int]) -> str:
    """Why a system with this C library and Python has no wheel of a runtime; empty where it has."""
    if bits == 32 and python >= (3, 12):
        return "tflite-runtime has 32-bit wheels for Python up to 3.11"
    if library != "glibc":
        return "wheels of the runtimes are for glibc, and this system has another C library"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    needed = _GLIBC_32_BIT if bits == 32 else _GLIBC
    if numbers < needed:
        return f"wheels of the runtimes need glibc {needed[0]}.{needed[1]}, and this system has {version}"
    return ""


def _check_runtimes(_: DoctorContext) -> Iterator[Finding]:
    found: list[Finding] = []
    if util.find_spec("onnxruntime") is not None:
        found += _load_runtime("onnxruntime")
    if any(util.find_spec(module) is not None for module in ("ai_edge_litert", "tflite_runtime")):
        found += _load_runtime("litert")
    if not found:
        text = "neither onnxruntime nor LiteRT is installed"
        if why := why_no_wheel_fits(*platform.libc_ver(), _bits(), sys.version_info[:2]):
            text = f"{text}; {why}"
        yield Finding("runtime", "broken", text, install_commands(describe_device().profile, _bits()))
    yield from found
    profile = describe_device().profile
    if profile.startswith("jetson_") and not any(finding.name in ("cuda", "tensorrt") for finding in found):
        text = "no runtime here offers the GPU: PyPI's onnxruntime runs on the processor only"
        yield Finding("accelerator", "warning", text, install_commands(profile, _bits()))
    if any(finding.name == "onnxruntime" for finding in found) and util.find_spec("onnx") is None:
        yield Finding("onnx", "broken", "onnxruntime is installed, the onnx package is not", _pip() + "install onnx")


def _load_runtime(runtime: Literal["onnxruntime", "litert"]) -> list[Finding]:
    """Load it for real, in a child: a wheel for another processor ends in a signal, not in an exception.

    So is every accelerator that it offers: a provider that is built in may still lack its libraries.
    """
    worker = Worker(child_command(default_host_lock_path()))
    try:
        reply = _probe(worker, RuntimeSetting(runtime=runtime))
        if isinstance(reply, PhaseReply):
            return [Finding(runtime, "warning", _why_not(reply), "run fleetnas-agent doctor again when it has ended")]
        if not isinstance(reply, ProbedReply):
            reinstall = f"{_pip()}install --force-reinstall {_distribution(runtime)}"
            return [Finding(runtime, "broken", _why_not(reply), reinstall)]
        text = f"{reply.version}; runs on {reply.active_provider}; offers {', '.join(reply.providers)}"
        found = [Finding(runtime, "ok", text)]
        accelerators = [name for name in reply.providers if name != "cpu"] if runtime == "onnxruntime" else []
        return found + [_load_provider(worker, name) for name in accelerators]
    finally:
        worker.kill()


def _load_provider(worker: Worker, provider: str) -> Finding:
    reply = _probe(worker, RuntimeSetting(provider=provider))
    if isinstance(reply, ProbedReply):
        return Finding(provider, "ok", f"a model runs on {reply.active_provider}")
    worker.kill()
    return Finding(provider, "warning", _why_not(reply), _ACCELERATOR_MENDS.get(provider, _OTHER_PROVIDER))


def _probe(worker: Worker, setting: RuntimeSetting) -> Reply | None:
    """The final reply; a `PhaseReply` where another agent of this host held its lock for too long."""
    worker.submit(ProbeOrder(setting=setting, micro_benchmarks=False))
    phase: PhaseReply | None = None
    while isinstance(reply := worker.poll(_PROBE_TIMEOUT_S), PhaseReply):
        phase = reply
    return phase if reply is None and phase is not None and phase.phase == "waiting" else reply


def _why_not(reply: Reply | None) -> str:
    if isinstance(reply, PhaseReply):
        return f"not tested: another agent of this host has been measuring for {_PROBE_TIMEOUT_S:g} s"
    return reply.detail if isinstance(reply, FailedReply) else f"no answer within {_PROBE_TIMEOUT_S:g} s"


def _distribution(runtime: Literal["onnxruntime", "litert"]) -> str:
    """What brings a runtime here."""
    if runtime == "onnxruntime":
        return "onnxruntime"
    return "tflite-runtime 'numpy<2'" if _bits() == 32 else "ai-edge-litert"


def _check_device(_: DoctorContext) -> Iterator[Finding]:
    profile = describe_device()
    text = f"{profile.model}, {profile.cores} cores"
    if profile.profile == "unknown":
        yield Finding("device", "warning", f"{text}: no known profile", "see docs/adding-a-device.md")
    else:
        yield Finding("device", "ok", f"{text}, profile {profile.profile}")


def _check_sensors(context: DoctorContext) -> Iterator[Finding]:
    sensors = Sensors()
    now = sensors.read()
    if now.temperature_c is None:
        text = "no temperature sensor: heat shows only in the reference subnets' latency"
        yield Finding("temperature", "warning", text, _sensor_mend(platform.machine()))
    else:
        yield Finding("temperature", "ok", f"{now.temperature_c:.0f} C")
    if now.governor is None:
        yield Finding("governor", "ok", "not adjustable here")
    elif now.governor == "performance" or sensors.clock_is_fixed():
        yield Finding("governor", "ok", now.governor + (", clock fixed" if sensors.clock_is_fixed() else ""))
    elif tegra_release() is not None:
        yield Finding("governor", "warning", f"{now.governor}: the clock changes while measuring", "sudo jetson_clocks")
    else:
        mend = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield Finding("governor", "warning", f"{now.governor}: the clock changes while measuring", mend)
    if now.throttled:
        mend = "cool the board, and give it the power supply its maker asks for"
        yield Finding("throttling", "warning", "the board reports that it is throttled now", mend)
    else:
        yield Finding("throttling", "ok", "not reported here" if now.throttled is None else "none")
    if tegra_release() is not None:
        yield _power_mode_finding(power_mode(), highest_power_mode())
    meter = sensors.power_meter
    yield Finding("power meter", "ok", meter.source if meter is not None else "none here: no energy is reported")
    objection = context.battery.objection(now)
    if objection:
        yield Finding("battery", "warning", f"the agent would wait: {objection}", objection.rpartition(": ")[2])
    elif now.battery_percent is not None:
        yield Finding("battery", "ok", f"{now.battery_percent:.0f} %, {now.battery_state or 'state unknown'}")


def _sensor_mend(machine: str) -> str:
    """What may bring a temperature sensor to a machine that shows none."""
    if util.find_spec("psutil") is None:
        return _pip() + "install psutil"
    if machine in ("x86_64", "i686", "AMD64"):
        return "sudo modprobe coretemp, with an AMD processor sudo modprobe k10temp; virtual machines have none"
    return "ls /sys/class/thermal: if it is empty, load the board's thermal driver; Android and containers hide it"


def _power_mode_finding(mode: str | None, highest: PowerMode | None) -> Finding:
    """A Jetson's: in every other mode than the highest, cores are off and clocks are capped."""
    if mode is None:
        return Finding("power mode", "warning", "nvpmodel does not tell it", "sudo nvpmodel -q")
    if highest is None:
        if mode.startswith("MAXN"):
            return Finding("power mode", "ok", mode)
        text = f"{mode}; the board does not tell which modes it has"
        return Finding("power mode", "warning", text, "sudo nvpmodel -p --verbose; then sudo nvpmodel -m ID")
    if mode == highest.name:
        return Finding("power mode", "ok", f"{mode}, the highest of this board")
    text = f"{mode}: cores and clocks are capped; the highest of this board is {highest.name}"
    return Finding("power mode", "warning", text, f"sudo nvpmodel -m {highest.number}")


def _check_memory(_: DoctorContext) -> Iterator[Finding]:
    free, limit = free_memory_bytes(), read_limits().memory_bytes
    if free is None:
        yield Finding("memory", "warning", "the system does not tell how much is free", "cat /proc/meminfo")
        return
    within = f" of the {limit / 1024**2:,.0f} MB that this container or service may have" if limit is not None else ""
    if free < _MIN_FREE_MEMORY_MB * 1024**2:
        text = f"{free / 1024**2:,.0f} MB free{within}, {_MIN_FREE_MEMORY_MB} MB are needed"
        mend = "raise its limit (--memory, MemoryMax=)" if limit is not None else "stop other programs, or add swap"
        yield Finding("memory", "warning", text, mend)
    else:
        yield Finding("memory", "ok", f"{free / 1024**2:,.0f} MB free{within}")


def _check_processor(_: DoctorContext) -> Iterator[Finding]:
    """Whether this process may use all of it, all the time."""
    limits = read_limits()
    text = f"cores {core_list(limits.cores)} may be used" if limits.cores else "the system does not tell which cores"
    if limits.quota_cores is None:
        yield Finding("processor", "ok", text)
        return
    status: Status = "warning" if limits.quota_cores < max(1, len(limits.cores)) else "ok"
    mend = "raise the CPU quota of this container or service (--cpus, CPUQuota=)" if status == "warning" else ""
    yield Finding("processor", status, f"{text}, with the time of {limits.quota_cores:g} cores", mend)


def _check_temporary_files(_: DoctorContext) -> Iterator[Finding]:
    try:
        yield Finding("temporary files", "ok", str(temporary_folder()))
    except FleetnasError as error:
        yield _trouble("temporary files", error)


def _check_state_folder(context: DoctorContext) -> Iterator[Finding]:
    folder = context.state_folder
    closed = unusable_place(StateFolder(folder, context.fleet, context.name))
    if closed is not None:
        place, why = closed
        mend = "choose another with --state-dir"
        if not os.path.lexists(folder):
            mend = f"sudo install -d -o {_user()} {folder}, or {mend}"
        elif os.path.isdir(place) or os.path.isfile(place):
            mend = f"sudo chown -R {_user()} {folder}, or {mend}"
        yield Finding("state folder", "broken", f"{place} {why}", mend)
        return
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    free = shutil.disk_usage(there).free
    if free < _MIN_FREE_DISK:
        text = f"{folder} has {free / 1e6:,.0f} MB free; a bundle may need {_MIN_FREE_DISK / 1e6:,.0f} MB"
        yield Finding("state folder", "warning", text, f"free some space, or delete {folder / 'blobs'}")
    else:
        made = "" if there == folder else " (it will be made)"
        yield Finding("state folder", "ok", f"{folder}{made}, {free / 1e9:,.1f} GB free")
    yield from _service_findings(folder, Installation())
    for other in stranded(folder, context.fleet, context.name):
        text = f"{other.unacknowledged} results of {other.name} wait here, and this agent is {context.name}"
        yield Finding("results", "warning", text, f"fleetnas-agent run --name {other.name}, once, to deliver them")


def _service_findings(state_folder: Path, installation: Installation) -> Iterator[Finding]:
    """Where this host's service runs as another user, it is not the one that was checked."""
    if state_folder == SERVICE_STATE or not os.path.exists(installation.unit):
        return
    program = Path(sys.executable).with_name("fleetnas-agent")
    yield Finding(
        "service",
        "warning",
        f"this is not the check of {UNIT}, which runs as {USER} and keeps its state in {SERVICE_STATE}",
        f"sudo -u {USER} STATE_DIRECTORY={SERVICE_STATE} {program} doctor --config {installation.configuration}",
    )


def _check_settings(context: DoctorContext) -> Iterator[Finding]:
    """Each is tried in a child like that of `run`."""
    engines = StateFolder(context.state_folder, context.fleet, context.name).engines
    worker = Worker(child_command(default_host_lock_path(), context.memory_limit_bytes, engines))
    limits = read_limits()
    devices: dict[DeviceProfile | None, str] = {}
    try:
        for setting in context.settings:
            reply = _probe(worker, setting)
            if not isinstance(reply, ProbedReply):
                worker.kill()
                status: Status = "warning" if isinstance(reply, PhaseReply) else "broken"
                mend = f"change or leave out the setting {setting.label}, or mend what its reason says"
                yield Finding("setting", status, f"{setting.label}: {_why_not(reply)}", mend)
                continue
            devices.setdefault(reply.device, setting.label)
            where = f" of {reply.device.model}" if reply.device is not None else ""
            cores = f", cores {core_list(reply.cores)}" if reply.cores else ""
            text = f"{setting.label} runs on {reply.active_provider}{where}{cores}"
            if objection := thread_objection(setting, limits):
                why, _, mend = objection.partition(": ")
                yield Finding("setting", "warning", why, mend)
            else:
                yield Finding("setting", "ok", text)
    finally:
        worker.kill()
    if len(devices) > 1:
        text = f"{' and '.join(devices.values())} run on different devices, and an agent is one device"
        yield Finding("settings", "broken", text, "start one agent per device, each with a --name")


def _check_host_lock(_: DoctorContext) -> Iterator[Finding]:
    path = default_host_lock_path()
    waiting: list[str] = []

    class _HeldError(Exception):
        pass

    def on_wait() -> None:
        raise _HeldError

    try:
        with hold_host_lock(path, on_wait):
            pass
    except _HeldError:
        waiting.append("; another agent of this host is measuring")
    except FleetnasError as error:
        mend = f"export {ENVIRONMENT_VARIABLE}=FILE, a file that every agent of this host can read"
        yield Finding("host lock", "broken", str(error).partition(";")[0], mend)
        return
    yield Finding("host lock", "ok", f"{path}{''.join(waiting)}")


def _check_clock(_: DoctorContext) -> Iterator[Finding]:
    if time.time() < _PLAUSIBLE_UNIX_S:
        text = f"says {time.strftime('%Y-%m-%d')}: times of measurements will be wrong, TLS certificates may be refused"
        yield Finding("clock", "warning", text, "sudo timedatectl set-ntp true")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _check_broker(context: DoctorContext) -> Iterator[Finding]:
    broker = context.broker
    if broker is None:
        yield Finding("broker", "warning", "not tested", "fleetnas-agent doctor --broker HOST:PORT")
        return
    try:
        address = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        mend = "check the name, or give the broker's IP address"
        yield Finding("broker name", "broken", f"{broker.host} is not known: {error}", mend)
        return
    yield Finding("broker name", "ok", f"{broker.host} is {address}")
    try:
        socket.create_connection((broker.host, broker.port), timeout=_BROKER_TIMEOUT_S).close()
    except OSError as error:
        mend = "start the broker (`fleetnas broker`), check its port and any firewall between"
        yield Finding("broker port", "broken", f"{broker} does not answer: {error}", mend)
        return
    yield Finding("broker port", "ok", f"{broker} answers")
    yield from _round_trip(context, broker)


def _round_trip(context: DoctorContext, broker: BrokerAddress) -> Iterator[Finding]:
    """Log in, and send ourselves a state of session 0, which counts for nothing."""
    topic = Topics(context.fleet).up(context.name, "state")
    instance = os.urandom(8).hex()
    transport = MqttTransport(broker, f"fleetnas-doctor-{instance}")
    transport.subscribe(topic)
    transport.start()
    try:
        try:
            transport.wait_connected(_BROKER_TIMEOUT_S)
        except FleetnasError as error:
            mend = "check --credentials, or --username, $FLEETNAS_PASSWORD, and --ca-file where the broker speaks TLS"
            yield Finding("broker login", "broken", str(error), mend)
            return
        yield Finding("broker login", "ok", f"{_login(broker)}, {'over TLS' if broker.uses_tls else 'unencrypted'}")
        begin = time.monotonic()
        transport.publish(topic, encode(AgentState(state="lost", session=0, instance=instance)))
        while (left_s := begin + _BROKER_TIMEOUT_S - time.monotonic()) > 0:
            event = transport.poll(left_s)
            if isinstance(event, Received) and _instance(event) == instance:
                took_ms = 1000 * (time.monotonic() - begin)
                yield Finding("round trip", "ok", f"{took_ms:.1f} ms through {topic}")
                return
        mend = f"let this login publish and subscribe below {topic.removesuffix('up/state')}"
        yield Finding("round trip", "broken", f"nothing came back through {topic}", mend)
    finally:
        transport.close()


def _login(broker: BrokerAddress) -> str:
    if broker.username is not None:
        return f"as {broker.username}"
    return "by certificate" if broker.certificate_file or broker.certificate_pem else "as anonymous"


def _instance(event: Received) -> str:
    try:
        return decode(AgentState, event.payload).instance
    except ProtocolError:
        return ""


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())

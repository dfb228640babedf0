"""Check Python and the runtimes: each is loaded in a child, with every accelerator that it offers."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import util

from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding
from fleetnas.agent.cli.doctor.installing import install_commands, interpreter_bits, no_wheel_reason
from fleetnas.agent.cli.doctor.probing import failure_of, probe
from fleetnas.agent.host.device import describe_device
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import PhaseReply, ProbedReply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.installing import pip_command
from fleetnas.fleet_protocol.messages import RuntimeName, RuntimeSetting

_ACCELERATOR_FIXES = {
    "cuda": "install the CUDA and cuDNN that this build of onnxruntime was made for; on a Jetson: "
    "sudo apt install nvidia-jetpack",
    "tensorrt": "install the TensorRT that this build of onnxruntime was made for; on a Jetson: "
    "sudo apt install nvidia-jetpack",
}
_OTHER_PROVIDER = "use another provider, or install a build of onnxruntime in which this one loads"


def check_python(_: DoctorContext) -> Iterator[Finding]:
    """Describe Python and its C library."""
    library, version = platform.libc_ver()
    system = f"{library or 'unknown C library'} {version}".strip()
    text = f"{platform.python_version()}, {interpreter_bits()}-bit, {platform.machine()}, {system}"
    if interpreter_bits() == 32:
        yield Finding("python", "warning", f"{text}: only LiteRT has wheels here", "install a 64-bit system if it fits")
    else:
        yield Finding("python", "ok", text)


def check_runtimes(_: DoctorContext) -> Iterator[Finding]:
    """Load every installed runtime and every accelerator that it offers."""
    found: list[Finding] = []
    if util.find_spec("onnxruntime") is not None:
        found += load_runtime("onnxruntime")
    if any(util.find_spec(module) is not None for module in ("ai_edge_litert", "tflite_runtime")):
        found += load_runtime("litert")
    if not found:
        text = "neither onnxruntime nor LiteRT is installed"
        if reason := no_wheel_reason(*platform.libc_ver(), interpreter_bits(), sys.version_info[:2]):
            text = f"{text}; {reason}"
        yield Finding("runtime", "broken", text, install_commands(describe_device().profile, interpreter_bits()))
    yield from found
    profile = describe_device().profile
    if profile.startswith("jetson_") and not any(finding.name in ("cuda", "tensorrt") for finding in found):
        text = "no runtime here offers the GPU: PyPI's onnxruntime runs on the processor only"
        yield Finding("accelerator", "warning", text, install_commands(profile, interpreter_bits()))
    if any(finding.name == "onnxruntime" for finding in found) and util.find_spec("onnx") is None:
        yield Finding(
            "onnx", "broken", "onnxruntime is installed, the onnx package is not", pip_command() + "install onnx"
        )


def load_runtime(runtime: RuntimeName) -> list[Finding]:
    """Load a runtime in a child: a wheel for another processor ends in a signal, not in an exception.

    Every accelerator that it offers is loaded too: a provider that is built in may lack its libraries.
    """
    worker = Worker(child_command(default_host_lock_path()))
    try:
        reply = probe(worker, RuntimeSetting(runtime=runtime))
        if isinstance(reply, PhaseReply):
            return [Finding(runtime, "warning", failure_of(reply), "run fleetnas-agent doctor again when it has ended")]
        if not isinstance(reply, ProbedReply):
            reinstall = f"{pip_command()}install --force-reinstall {_distribution(runtime)}"
            return [Finding(runtime, "broken", failure_of(reply), reinstall)]
        text = f"{reply.version}; runs on {reply.active_provider}; offers {', '.join(reply.providers)}"
        found = [Finding(runtime, "ok", text)]
        accelerators = [name for name in reply.providers if name != "cpu"] if runtime == "onnxruntime" else []
        return found + [_load_provider(worker, name) for name in accelerators]
    finally:
        worker.kill()


def _load_provider(worker: Worker, provider: str) -> Finding:
    reply = probe(worker, RuntimeSetting(provider=provider))
    if isinstance(reply, ProbedReply):
        return Finding(provider, "ok", f"a model runs on {reply.active_provider}")
    worker.kill()
    return Finding(provider, "warning", failure_of(reply), _ACCELERATOR_FIXES.get(provider, _OTHER_PROVIDER))


def _distribution(runtime: RuntimeName) -> str:
    """Return the distributions that contain a runtime."""
    if runtime == "onnxruntime":
        return "onnxruntime"
    return "tflite-runtime 'numpy<2'" if interpreter_bits() == 32 else "ai-edge-litert"

"""Describe this device: board, processor, memory, operating system, installed versions."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from fleetnas.agent.host.jetson import power_mode, tegra_release
from fleetnas.agent.host.limits import allowed_cores, total_memory_bytes
from fleetnas.agent.host.power import find_power_meter
from fleetnas.agent.host.processor import describe_processor
from fleetnas.device_profiles.catalogue import load_catalogue
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.child_process import child_environment

#: Distributions whose versions can change a latency.
_DISTRIBUTIONS = ("fleetnas", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime")


def describe_device(
    root: Path = Path("/"), *, model: str = "", machine: str = "", operating_system: str = ""
) -> DeviceProfile:
    """Return the device's profile from the files under `root`, without micro-benchmarks.

    For another device than this host, `model`, `machine` and `operating_system` are given, and the files are copies.
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
        # Only the cores that may be used here: a container sees the others too, and cannot run on them.
        cores=len(allowed_cores(root)) or sum(cluster.cores for cluster in processor.clusters) or os.cpu_count() or 1,
        vector_extensions=processor.vector_extensions,
        memory_mb=int(memory / 1024**2) or None if (memory := total_memory_bytes(root)) is not None else None,
        accelerator=known.accelerator if known is not None else None,
    )


def installed_versions() -> dict[str, str]:
    """Return versions of the packages on which a latency depends; nothing is imported."""
    installed = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)[:64]
    return installed


def board_versions(root: Path = Path("/")) -> dict[str, str]:
    """Return further facts on which a result depends: a Jetson's release and power mode, and the power meter."""
    meter = find_power_meter(root)
    release = tegra_release(root)
    found = {
        "linux-for-tegra": release,
        "power-mode": power_mode() if release is not None else None,
        "power-meter": meter.source if meter is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _android(root: Path, name: str) -> str:
    """Return a system property of Android; empty on other systems."""
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

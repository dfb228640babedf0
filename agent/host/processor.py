"""Describe the processor from `/proc/cpuinfo` and sysfs: cores, clusters and vector extensions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.host.device_files import number
from fleetnas.agent.host.units import clock_mhz
from fleetnas.device_profiles.catalogue import load_arm_cores
from fleetnas.device_profiles.profile import CpuCluster
from fleetnas.device_profiles.quantities import of_readings

#: Flags that decide which kernels a runtime picks, in the order of their usefulness.
_VECTOR_FLAGS = (
    "sse4_1",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "neon",
    "vfpv4",
    "asimd",
    "asimdhp",
    "asimddp",
    "sve",
    "i8mm",
    "bf16",
    "sve2",
    "sme",
)


@dataclass(frozen=True, slots=True)
class Processor:
    """Description of a processor."""

    name: str
    clusters: tuple[CpuCluster, ...]
    vector_extensions: tuple[str, ...]


def describe_processor(root: Path = Path("/")) -> Processor:
    """Describe the processor of the device whose files lie under `root`; unknown facts are left out."""
    cores, general = _read_cpuinfo(root)
    names = [_core_name(core) for core in cores]
    # By the number that the kernel gives each: those that are offline are not listed.
    clocks = [_max_clock_mhz(root, core["processor"]) for core in cores]
    counted = Counter(zip(names, clocks, strict=True))
    flags = set(" ".join(core.get("flags", core.get("Features", "")) for core in cores[:1]).split())
    clusters = tuple(
        of_readings(CpuCluster, name=(name or "unknown")[:64], cores=count, max_clock_mhz=clock)
        for (name, clock), count in sorted(counted.items(), key=lambda item: -(item[0][1] or 0))
    )
    return Processor(
        name=general.get("Hardware") or (names[0] if names else ""),
        clusters=clusters[:16],
        vector_extensions=tuple(flag for flag in _VECTOR_FLAGS if flag in flags),
    )


def _read_cpuinfo(root: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return the fields of each processor, and the general ones."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return [], {}
    cores: list[dict[str, str]] = []
    general: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = {
            key.strip(): value.strip() for key, _, value in (line.partition(":") for line in paragraph.splitlines())
        }
        if "processor" in fields:
            cores.append(fields)
        else:
            general |= fields
    return cores, general


def _core_name(core: dict[str, str]) -> str:
    if "CPU part" in core:
        key = f"{core.get('CPU implementer', '')}/{core['CPU part']}".lower()
        return load_arm_cores().get(key, f"Arm {key}")
    return core.get("model name", "")


def _max_clock_mhz(root: Path, core: str) -> float | None:
    if not core.isdecimal():
        return None
    reading = number(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
    return clock_mhz(reading) if reading is not None else None

"""Read the limits of this process, which a container or a service may set: cores, processor time and memory.

Sources: `cpuset`, `cpu` and `memory` of control groups, version 1 and 2 (kernel documentation, admin-guide/cgroup-v1
and cgroup-v2), the scheduler's affinity, and `/proc/meminfo`. A limit counts wherever it is set between the process's
own group and the topmost one that the container shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.host.device_files import number, text
from fleetnas.fleet_protocol.cores import affinity
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: Version 1 says "no limit" by a number near 2^63.
_UNLIMITED_BYTES = 2.0**60


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of this process; None means without a limit."""

    cores: tuple[int, ...]
    """Numbers of the online cores that it may run on; empty if the system does not tell."""
    quota_cores: float | None
    """Processor time per time, as a number of cores: beyond it the kernel pauses the process."""
    memory_bytes: float | None


def read_limits(root: Path = Path("/")) -> Limits:
    """Read the limits of this process from the files under `root`."""
    limits = [limit for limit, _ in _memory_groups(root)]
    quotas = [quota for quota in map(_quota, _groups(root, "cpu")) if quota is not None]
    return Limits(allowed_cores(root), min(quotas, default=None), min(limits, default=None))


def allowed_cores(root: Path = Path("/")) -> tuple[int, ...]:
    """Return the cores that this process may run on: its affinity within its cpuset, without offline cores."""
    if root == Path("/"):
        return affinity()
    status = dict(line.partition(":")[::2] for line in text(root / "proc/self/status").splitlines())
    cores = core_numbers(status.get("Cpus_allowed_list", ""))
    online = core_numbers(text(root / "sys/devices/system/cpu/online"))
    return tuple(sorted(cores & online if cores and online else cores or online))


def thread_objection(setting: RuntimeSetting, limits: Limits) -> str:
    """Return why the threads of a setting cannot all run at once, with the next action; empty if they can.

    For a phone, whose limits are not this host's, only the setting's own cores count.
    """
    cores = len(setting.affinity) or (len(limits.cores) if setting.runtime != "adb" else 0)
    quota = limits.quota_cores if setting.runtime != "adb" else None
    if cores and setting.threads > cores:
        return (
            f"{setting.label} asks for {setting.threads} threads and may run on {cores} cores only: they take turns; "
            f"give threads={cores}, or more cores"
        )
    if quota is not None and setting.threads > quota + 1e-9:
        return (
            f"{setting.label} asks for {setting.threads} threads and may use the time of {quota:g} cores only: the "
            "kernel pauses it while it is measured; raise the CPU quota of the container or service (--cpus, CPUQuota=)"
        )
    return ""


def core_numbers(listed: str) -> set[int]:
    """Parse a kernel's list such as `0-3,6`; empty if it is none."""
    found: set[int] = set()
    for part in listed.strip().split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        found.update(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return found


def core_list(cores: Iterable[int]) -> str:
    """Format cores as the kernel lists them, such as `0-3,6`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], core]
        else:
            runs.append([core])
    return ",".join("-".join(map(str, run)) for run in runs)


def total_memory_bytes(root: Path = Path("/")) -> float | None:
    """Return the memory that this process may have, in bytes: the device's, or its limit; None if unknown."""
    known = [_meminfo_bytes(root, "MemTotal"), read_limits(root).memory_bytes]
    return min((size for size in known if size is not None), default=None)


def free_memory_bytes(root: Path = Path("/")) -> float | None:
    """Return the memory that this process may still take, in bytes; None if the system does not tell."""
    known = [_meminfo_bytes(root, "MemAvailable")]
    known += [max(0.0, limit - used) for limit, used in _memory_groups(root)]
    return min((size for size in known if size is not None), default=None)


def _meminfo_bytes(root: Path, field: str) -> float | None:
    for line in text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == field and words and words[0].isdecimal():
            return 1024.0 * int(words[0])
    return None


def _memory_groups(root: Path) -> list[tuple[float, float]]:
    """Return limit and use, in bytes, of every group that limits memory; cached files do not count as used."""
    found = []
    for group in _groups(root, "memory"):
        highs = [number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limit = min((high for high in highs if high is not None), default=_UNLIMITED_BYTES)
        if limit < _UNLIMITED_BYTES:
            used = number(group / "memory.current") or number(group / "memory.usage_in_bytes") or 0.0
            lines = (line.split() for line in text(group / "memory.stat").splitlines())
            stat = {words[0]: words[1] for words in lines if len(words) == 2 and words[1].isdecimal()}
            cached = float(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
            found.append((limit, max(0.0, used - cached)))
    return found


def _quota(group: Path) -> float | None:
    words = text(group / "cpu.max").split() or [text(group / "cpu.cfs_quota_us"), text(group / "cpu.cfs_period_us")]
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
        return int(words[0]) / int(words[1]) or None
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it, as far as they are visible."""
    for mount, shown, unified in _mounts(root, controller):
        own = _own_group(root, None if unified else controller)
        if own is None:
            continue
        # In a container the mount may show a part of the hierarchy, and the path may be the whole one or that part.
        below = own.removeprefix(shown.rstrip("/")) if own == shown or own.startswith(f"{shown.rstrip('/')}/") else own
        folder = mount.joinpath(*(part for part in below.split("/") if part not in ("", "..")))
        if not folder.is_dir():
            folder = mount
        yield folder
        while folder != mount:
            folder = folder.parent
            yield folder


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, str, bool]]:
    """Yield each mount of a controller's hierarchy, the visible part of it, and whether it is version 2."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        words, kind = fields.split(), rest.split()
        if len(words) < 5 or len(kind) < 3:
            continue
        unified = kind[0] == "cgroup2"
        if unified or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            yield root / words[4].lstrip("/"), words[3], unified


def _own_group(root: Path, controller: str | None) -> str | None:
    """Return the path of this process's group in the hierarchy of a controller, of version 2 with None."""
    for line in text(root / "proc/self/cgroup").splitlines():
        number_, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") if controller is not None else number_ == "0" and not controllers:
            return path
    return None

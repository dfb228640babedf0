"""What a container or a service leaves of a device: memory, processor time and cores, from control groups 1 and 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rigs import waiting
from rigs.device_trees import control_group_files, write_files

from fleetnas.agent.cli.doctor import device as doctor
from fleetnas.agent.cli.doctor.finding import DoctorContext
from fleetnas.agent.host.device import describe_device
from fleetnas.agent.host.limits import (
    Limits,
    allowed_cores,
    core_list,
    core_numbers,
    free_memory_bytes,
    read_limits,
    thread_objection,
    total_memory_bytes,
)
from fleetnas.fleet_protocol.messages import RuntimeSetting

MB = 1024**2
MEMINFO = {"proc/meminfo": "MemTotal:       32000000 kB\nMemFree: 1 kB\nMemAvailable:   21000000 kB\n"}
UNLIMITED = "9223372036854771712\n"


def groups_2(folder: str, **files: str) -> dict[str, str]:
    return {f"sys/fs/cgroup{folder}/{name.replace('_', '.', 1)}": text for name, text in files.items()}


def groups_1(folder: str, memory: dict[str, str], cpu: dict[str, str]) -> dict[str, str]:
    found = {f"sys/fs/cgroup/memory{folder}/{name}": text for name, text in memory.items()}
    return found | {f"sys/fs/cgroup/cpu,cpuacct{folder}/{name}": text for name, text in cpu.items()}


def test_a_container_of_version_2_is_limited_to_what_it_was_given(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        MEMINFO
        | control_group_files(2, "/")
        | groups_2(
            "",
            memory_max=f"{180 * MB}\n",
            memory_high="max\n",
            memory_current=f"{100 * MB}\n",
            memory_stat=f"anon 5\ninactive_file {40 * MB}\nactive_file 7\n",
            cpu_max="150000 100000\n",
        ),
    )
    assert read_limits(root) == Limits((), 1.5, 180 * MB)
    assert total_memory_bytes(root) == 180 * MB
    assert free_memory_bytes(root) == 120 * MB, "files that nobody waits for make room"
    assert describe_device(root).memory_mb == 180


def test_a_container_of_version_1_sees_its_own_part_of_the_hierarchy(tmp_path: Path) -> None:
    own = "/docker/0123abcd"
    root = write_files(
        tmp_path,
        MEMINFO
        | control_group_files(1, own, shown=own)
        | groups_1(
            "",
            {
                "memory.limit_in_bytes": f"{256 * MB}\n",
                "memory.usage_in_bytes": f"{56 * MB}\n",
                "memory.stat": f"inactive_file 1\ntotal_inactive_file {6 * MB}\n",
            },
            {"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"},
        ),
    )
    assert read_limits(root) == Limits((), 0.5, 256 * MB)
    assert free_memory_bytes(root) == 206 * MB


def test_a_limit_counts_wherever_it_is_set_above_the_process(tmp_path: Path) -> None:
    own = "/system.slice/fleetnas-agent.service"
    root = write_files(
        tmp_path,
        MEMINFO
        | control_group_files(2, own)
        | groups_2(own, memory_max="max\n", memory_current="9\n", cpu_max="300000 100000\n")
        | groups_2(
            "/system.slice", memory_max=f"{512 * MB}\n", memory_current=f"{12 * MB}\n", cpu_max="200000 100000\n"
        ),
    )
    assert read_limits(root) == Limits((), 2.0, 512 * MB)
    assert free_memory_bytes(root) == 500 * MB


def test_a_soft_limit_beyond_which_the_kernel_brakes_is_a_limit(tmp_path: Path) -> None:
    files = groups_2("", memory_max=f"{800 * MB}\n", memory_high=f"{600 * MB}\n", memory_current="0\n")
    root = write_files(tmp_path, MEMINFO | control_group_files(2, "/") | files)
    assert read_limits(root).memory_bytes == 600 * MB


@pytest.mark.parametrize("version", [1, 2])
def test_without_limits_the_device_is_whole(tmp_path: Path, version: int) -> None:
    files = groups_2("", memory_max="max\n", cpu_max="max 100000\n")
    files |= groups_1(
        "", {"memory.limit_in_bytes": UNLIMITED}, {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "1\n"}
    )
    root = write_files(tmp_path, MEMINFO | control_group_files(version, "/user.slice/gone") | files)
    assert read_limits(root) == Limits((), None, None)
    assert free_memory_bytes(root) == 21_000_000 * 1024
    assert total_memory_bytes(root) == 32_000_000 * 1024


def test_a_group_that_took_more_than_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = groups_2("", memory_max=f"{10 * MB}\n", memory_current=f"{11 * MB}\n")
    assert free_memory_bytes(write_files(tmp_path, MEMINFO | control_group_files(2, "/") | files)) == 0


@pytest.mark.parametrize("rubbish", ["", "nonsense", "0::\n", "::::", "0::/../..\n"])
def test_odd_or_missing_files_limit_nothing(tmp_path: Path, rubbish: str) -> None:
    files = {
        "proc/self/cgroup": rubbish,
        "proc/self/mountinfo": "1 2 3\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 x rw\n",
    }
    root = write_files(tmp_path, files | groups_2("", memory_max="lots\n", cpu_max="1\n"))
    assert read_limits(root) == Limits((), None, None)
    assert (free_memory_bytes(root), total_memory_bytes(root)) == (None, None)


# -- cores -----------------------------------------------------------------------------------------------------------


def test_cores_are_those_of_the_cpuset_that_are_online(tmp_path: Path) -> None:
    status = "Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t0-3,6\n"
    root = write_files(tmp_path, {"proc/self/status": status, "sys/devices/system/cpu/online": "0-1,3-7\n"})
    assert allowed_cores(root) == (0, 1, 3, 6)
    assert describe_device(root).cores == 4
    assert allowed_cores(tmp_path / "no such device") == ()


def test_the_affinity_of_this_process_is_its_limit() -> None:
    first = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{first}}})\n"
        "from fleetnas.agent.host.limits import read_limits; from fleetnas.agent.host.device import describe_device\n"
        "print(*read_limits().cores, describe_device().cores)"
    )
    done = waiting.run([sys.executable, "-c", program])
    assert done.stdout.split() == [str(first), "1"]


@pytest.mark.parametrize(
    ("listed", "cores"),
    [("0-3,6", {0, 1, 2, 3, 6}), ("5", {5}), ("", set()), ("a-b", set()), ("1-", {1}), ("3-1", set())],
)
def test_a_list_of_cores_is_read_as_the_kernel_writes_it(listed: str, cores: set[int]) -> None:
    assert core_numbers(listed) == cores


def test_cores_are_written_as_the_kernel_writes_them() -> None:
    assert core_list([6, 0, 1, 2, 3]) == "0-3,6"
    assert core_list([1]) == "1"
    assert core_list([]) == ""


# -- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "limits", "says"),
    [
        (RuntimeSetting(threads=4), Limits((0, 1), None, None), "may run on 2 cores only"),
        (RuntimeSetting(threads=2), Limits((0, 1), None, None), ""),
        (RuntimeSetting(threads=2, affinity=(1,)), Limits((0, 1), None, None), "may run on 1 cores only"),
        (RuntimeSetting(threads=2), Limits((0, 1), 1.5, None), "the time of 1.5 cores only"),
        (RuntimeSetting(threads=1), Limits((0, 1), 0.5, None), "the time of 0.5 cores only"),
        (RuntimeSetting(threads=2), Limits((), None, None), ""),
        (RuntimeSetting(runtime="adb", threads=8), Limits((0, 1), 1.0, None), ""),
        (RuntimeSetting(runtime="adb", threads=4, affinity=(6, 7)), Limits((), None, None), "may run on 2 cores only"),
    ],
)
def test_more_threads_than_can_run_at_once_are_warned_of(setting: RuntimeSetting, limits: Limits, says: str) -> None:
    said = thread_objection(setting, limits)
    assert says in said if says else said == ""


def context(tmp_path: Path) -> DoctorContext:
    return DoctorContext(tmp_path, "default", "pi", None)


def test_the_doctor_tells_the_memory_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 100.0 * MB)
    monkeypatch.setattr(doctor, "read_limits", lambda: Limits((0, 1), None, 180.0 * MB))
    (finding,) = doctor.check_memory(context(tmp_path))
    assert (finding.status, "100 MB free of the 180 MB" in finding.text) == ("warning", True)
    assert "--memory" in finding.fix


@pytest.mark.parametrize(("quota", "status"), [(None, "ok"), (2.0, "ok"), (1.5, "warning")])
def test_the_doctor_warns_of_a_quota_of_processor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float | None, status: str
) -> None:
    monkeypatch.setattr(doctor, "read_limits", lambda: Limits((0, 1), quota, None))
    (finding,) = doctor.check_processor(context(tmp_path))
    assert finding.status == status
    assert "cores 0-1" in finding.text

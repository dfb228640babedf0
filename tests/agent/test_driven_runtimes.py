"""Runtimes that this host only drives: a phone over adb, and a user's own program.

`stand_ins/adb` imitates adb and the phone; what it says about itself stands in its docstring.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.agent_rig import final_reply
from rigs.runtime_stand_ins import attach_phone
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.messages import FailedReply, MeasuredReply, MeasureOrder, ReferenceOrder, Reply
from fleetnas.agent.measuring.references import DRIVEN_RUNGS
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.runtimes.adb_runtime import AdbRuntime
from fleetnas.agent.runtimes.base import ProviderFallbackError
from fleetnas.agent.runtimes.benchmark_model import parse_output, summarise_blocks
from fleetnas.agent.runtimes.command_runtime import CommandRuntime, parse_report
from fleetnas.agent.service.agent_info import agent_info
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
SHORT = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=9, min_s=0, half_width_percent=1000)
ADB = RuntimeSetting(runtime="adb")
COMMAND = RuntimeSetting(runtime="command", provider="npu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("driven") / "digits.supernet", SPACE)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The phone's file system, with benchmark_model installed."""
    return attach_phone(tmp_path, monkeypatch)


def log(phone: Path) -> list[str]:
    return (phone / "log").read_text().splitlines()


def model_of(bundle: SupernetBundle, setting: RuntimeSetting) -> bytes:
    return build_model(bundle, SPACE.decode(SPACE.smallest())[0], None, setting)


# -- a phone ---------------------------------------------------------------------------------------------------------


def test_a_subnet_is_pushed_timed_on_the_phone_and_removed(phone: Path, bundle: SupernetBundle, tmp_path: Path) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    worker.submit(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=SPACE.decode(SPACE.largest())[0],
            setting=ADB.model_copy(update={"threads": 2, "affinity": (6, 7)}),
            protocol=SHORT,
            references=ReferenceOrder(),
        )
    )
    reply = final_reply(worker)
    worker.close()
    assert isinstance(reply, MeasuredReply), reply
    assert reply.timing.runs == 3 * 3
    assert len(reply.timing.block_medians_ms) == 3
    assert reply.timing.min_ms <= reply.timing.median_ms
    assert reply.before.battery_percent == 83
    assert reply.before.temperature_c == 31.2
    assert reply.paired is not None
    assert reply.paired.basis in ("bracketed", "none")
    assert len(reply.levels_ms) == DRIVEN_RUNGS
    benchmarks = [line for line in log(phone) if "benchmark_model" in line]
    assert all(line.startswith("taskset c0 ") and "--num_threads=2" in line for line in benchmarks)
    left = list((phone / "data/local/tmp/fleetnas").iterdir())
    assert len(left) == DRIVEN_RUNGS, "the measured model is removed; the references stay for the next measurement"


def test_the_protocol_reaches_the_tool(phone: Path, bundle: SupernetBundle) -> None:
    model = AdbRuntime().load(model_of(bundle, ADB), ADB)
    model.time(MeasurementProtocol(warmup_runs=2, warmup_s=0.04, min_runs=30, min_s=0.06, max_s=6))
    timed = [line for line in log(phone) if "--num_runs=10 " in line]
    assert len(timed) == 3
    assert "--min_secs=0.02 --max_secs=2 --warmup_runs=2 --warmup_min_secs=0.04" in timed[0]


def test_a_delegate_that_does_not_take_the_model_is_a_fallback(
    phone: Path, bundle: SupernetBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = RuntimeSetting(runtime="adb", provider="gpu")
    assert AdbRuntime().load(model_of(bundle, gpu), gpu).provider == "gpu"
    monkeypatch.setenv("PHONE_TROUBLE", "no gpu")
    with pytest.raises(ProviderFallbackError, match="on its processor"):
        AdbRuntime().load(model_of(bundle, gpu), gpu)
    with pytest.raises(ProviderFallbackError, match="'tpu'"):
        AdbRuntime().load(b"", RuntimeSetting(runtime="adb", provider="tpu"))


@pytest.mark.parametrize(
    ("trouble", "serial", "advice"),
    [
        ("unauthorized", "", "unlock the phone"),
        ("none", "", "switch on USB debugging"),
        ("two phones", "", "one agent each"),
        ("", "WRONG", "check `adb devices`"),
    ],
)
def test_troubles_with_the_phone_come_with_what_to_do(
    phone: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, serial: str, advice: str
) -> None:
    monkeypatch.setenv("PHONE_TROUBLE", trouble)
    monkeypatch.setenv("FLEETNAS_ADB_SERIAL", serial)
    with pytest.raises(RuntimeUnavailableError, match=advice):
        AdbRuntime().version()


def test_the_phone_and_its_tool_are_named(phone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHONE_TROUBLE", "two phones")
    monkeypatch.setenv("FLEETNAS_ADB_SERIAL", "R58M123ABC")
    assert AdbRuntime().version() == "benchmark_model on SM-G960F, Android 10"
    (phone / "data/local/tmp/benchmark_model").unlink()
    with pytest.raises(RuntimeUnavailableError, match="adb push benchmark_model"):
        AdbRuntime().version()


def test_the_profile_is_the_phones_and_not_this_hosts(phone: Path, tmp_path: Path) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    info = agent_info("galaxy", 1, [ADB], worker, tmp_path / "probes")
    worker.close()
    assert (info.profile.model, info.profile.profile) == ("SM-G960F", "samsung_galaxy")
    assert [(c.name, c.cores) for c in info.profile.clusters if c.max_clock_mhz] == [
        ("Exynos M3", 1),
        ("Cortex-A55", 1),
    ]
    assert (info.profile.cores, info.profile.memory_mb) == (8, 3631)
    assert info.profile.micro_benchmarks.copy_gb_per_s is None
    assert info.profile.micro_benchmarks.gemm_gflops is not None
    assert not (tmp_path / "probes").exists()


def test_one_agent_is_one_device(phone: Path, tmp_path: Path) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    with pytest.raises(UsageError, match="one agent per device"):
        agent_info("both", 1, [ADB, RuntimeSetting()], worker, tmp_path / "probes")
    worker.close()


def test_a_model_that_the_phone_refuses_is_an_error_with_its_words(phone: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="Benchmarking failed"):
        AdbRuntime().load(b"no model", ADB)


def test_without_adb_its_installation_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailableError, match="apt install adb"):
        AdbRuntime().version()


def test_a_phone_writes_no_file_of_this_host(phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    outside = "../" * 12 + str(victim).lstrip("/")
    names = [
        f"/{outside}",
        f"//{victim}",
        outside,
        f"/proc/{outside}",
        f"/sys/devices/system/cpu/cpu0/cpufreq/{outside}",
        "/sys/devices/system/cpu/cpu٣/cpufreq/cpuinfo_max_freq",
        "/proc/cpuinfo/below",
        "/etc/os-release",
        "/proc/cpuinfo\0x",
        "",
        "/",
        "/" + "a/" * 3000 + "b",
    ]
    told = tmp_path / "told"
    # Of a file that was asked for, the first content counts.
    told.write_text("".join(f"--- fleetnas {name}\nstolen\n" for name in [*names, "/proc/meminfo"]))
    monkeypatch.setenv("PHONE_FILES", str(told))
    profile = AdbRuntime().device()
    assert profile.memory_mb == 3631
    assert victim.read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"victim", "temporary", "told", "phone", "bin"}
    assert list(temporary.iterdir()) == []


def test_what_adb_says_about_itself_is_no_data(phone: Path) -> None:
    runtime = AdbRuntime()  # the stand-in warns each time, as adb does
    assert runtime.version() == "benchmark_model on SM-G960F, Android 10"
    assert (runtime.device().model, runtime.device().machine) == ("SM-G960F", "aarch64")
    assert runtime.device().operating_system == "Android 10"


def test_models_that_killed_children_left_on_the_phone_are_removed_and_only_they(
    phone: Path, bundle: SupernetBundle
) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    folder = phone / "data/local/tmp/fleetnas"
    folder.mkdir()
    dead = f"{'a' * 16}-{int(ended.stdout)}-3.tflite"
    kept = [f"{'b' * 16}-{os.getppid()}-0.tflite", "photo.tflite", f"{'a' * 16}-0-0.tflite"]
    for name in (dead, *kept):
        (folder / name).touch()
    AdbRuntime().load(model_of(bundle, ADB), ADB).close()
    assert sorted(file.name for file in folder.iterdir()) == sorted(kept)


@pytest.mark.parametrize("battery", ["999999999999999999999 2 312", "101 2 312", "-1 2 312"])
def test_a_battery_level_that_is_none_is_unknown(phone: Path, monkeypatch: pytest.MonkeyPatch, battery: str) -> None:
    monkeypatch.setenv("PHONE_BATTERY", battery)
    found = AdbRuntime().conditions()
    assert (found.battery_percent, found.battery_temperature_c) == (None, 31.2)


RECENT = """\
INFO: Initialized session in 12.75ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=37 first=14744 curr=15520 min=13164 max=18295 avg=13764.3 std=967

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470

INFO: Inference timings in us: Init: 12750, First inference: 14744, Warmup (avg): 13764.3, Inference (avg): 13520.2
"""


def test_output_of_the_tool_is_read_with_and_without_a_median() -> None:
    found = parse_output(RECENT)
    assert (found.count, found.min_us, found.mean_us, found.deviation_us) == (74, 13105, 13520.2, 470)
    assert found.median_us is None
    assert found.warm_up_us == pytest.approx(37 * 13764.3)
    old = RECENT.replace("INFO: ", "")
    assert parse_output(old) == found
    with_median = RECENT.replace("std=470", "std=470 p5=13200 median=13480 p95=14100")
    assert parse_output(with_median).median_us == 13480
    assert parse_output("count=1 curr=4321\ncount=1 curr=4200\n").mean_us == 4200


@pytest.mark.parametrize(
    "text", ["", "ERROR: Failed to load model", "count=5 avg=0 min=0", "count=3 first=1e min=.. avg=1"]
)
def test_output_without_usable_timings_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match="benchmark_model"):
        parse_output(text)


def test_blocks_that_disagree_widen_the_interval() -> None:
    block = parse_output(RECENT)
    calm = summarise_blocks([block] * 3, 2.0)
    assert calm.median_ms == pytest.approx(13.5202)
    assert (calm.runs, calm.noisy) == (222, False)
    hot = parse_output(RECENT.replace("avg=13520.2", "avg=15000.0"))
    drifting = summarise_blocks([block, block, hot], 2.0)
    assert drifting.noisy
    assert drifting.half_width_percent == pytest.approx(100 * (15.0 - 13.5202) / 2 / 13.5202)


# -- a program ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(child_command(tmp_path / "lock"))
    yield worker
    worker.kill()


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    file = tmp_path / "bench.py"
    file.write_text(f"import json, os, sys, time\n{body}")
    monkeypatch.setenv("FLEETNAS_COMMAND", f"{sys.executable} {file} --model {{model}} --runs {{runs}} {{provider}}")


def ask(worker: Worker, bundle: SupernetBundle) -> Reply:
    worker.submit(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=SPACE.decode(SPACE.smallest())[0],
            setting=COMMAND,
            protocol=SHORT,
        )
    )
    return final_reply(worker)


def test_a_program_that_prints_times_is_a_runtime(
    worker: Worker, bundle: SupernetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        monkeypatch,
        "size = os.path.getsize(sys.argv[2])\nruns = int(sys.argv[4])\nprint('loading', size)\n"
        "print(json.dumps({'times_ms': [5.0 + i % 3 for i in range(runs)], 'provider': sys.argv[5] + '-7'}))",
    )
    reply = ask(worker, bundle)
    assert isinstance(reply, MeasuredReply), reply
    assert (reply.timing.median_ms, reply.timing.runs, reply.provider) == (6.0, 9, "npu-7")
    assert reply.timing.block_medians_ms == (6.0, 6.0, 6.0)


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        ("sys.exit('no such chip')", "runtime", "no such chip"),
        ("print('4.1 ms')", "runtime", "times_ms"),
        ("print(json.dumps({'times_ms': [1, 2, -3]}))", "runtime", "cannot be used"),
        ("print(json.dumps({'times_ms': [1, 2, 3], 'provider': 'CPU'}))", "provider_fallback", "cpu ran the model"),
    ],
)
def test_a_program_that_fails_is_a_failure_with_its_words(
    worker: Worker,
    bundle: SupernetBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    reason: str,
    detail: str,
) -> None:
    program(tmp_path, monkeypatch, body)
    reply = ask(worker, bundle)
    assert isinstance(reply, FailedReply)
    assert reply.reason == reason
    assert detail in reply.detail


def test_a_program_that_hangs_dies_with_the_child(
    worker: Worker, bundle: SupernetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    program(tmp_path, monkeypatch, f"open({str(pipe)!r}, 'w').write(str(os.getpid()))\ntime.sleep(3600)")
    worker.submit(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=SPACE.decode(SPACE.smallest())[0],
            setting=COMMAND,
            protocol=SHORT,
        )
    )
    hanging = int(pipe.read_text())
    worker.kill()
    waiting.until(lambda: waiting.gone(hanging), what="the program outlived its child")


def test_a_program_that_uses_onnxruntime_is_told_to_keep_quiet(
    worker: Worker, bundle: SupernetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    told = "'telemetry off: ' + os.environ.get('ORT_DISABLE_TELEMETRY', '')"
    program(tmp_path, monkeypatch, f"print(json.dumps({{'times_ms': [4, 4, 4], 'provider': {told}}}))")
    reply = ask(worker, bundle)
    assert isinstance(reply, MeasuredReply)
    assert reply.provider == "telemetry off: 1"


def test_a_command_line_without_a_model_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETNAS_COMMAND", raising=False)
    with pytest.raises(RuntimeUnavailableError, match=r"\$FLEETNAS_COMMAND"):
        CommandRuntime().version()
    assert CommandRuntime("bench {model}").version() == "bench"


def test_the_last_report_counts() -> None:
    text = '{"times_ms": [9, 9, 9]}\nwarming up\n{"times_ms": [1, 2, 3], "warm_up_s": 0.5}\nbye\n'
    assert parse_report(text, "bench").times_ms == [1, 2, 3]

"""A Jetson: its accelerators in onnxruntime, and its sensors, from stand-ins.

No Jetson is at hand where this project is tested. `stand_ins/jetson` imitates NVIDIA's onnxruntime-gpu and nvpmodel,
`device_trees` the board's files; what each imitates stands in its own words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.agent_rig import final_reply
from rigs.device_trees import jetson_orin_nano_files, power_mode_files, write_files
from rigs.runtime_stand_ins import become_jetson
from rigs.supernets import random_bundle

from fleetnas.agent.cli.doctor.device import power_mode_finding
from fleetnas.agent.cli.doctor.runtimes import load_runtime
from fleetnas.agent.host.device import board_versions, describe_device
from fleetnas.agent.host.jetson import highest_power_mode
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import FailedReply, MeasuredReply, MeasureOrder, ProbedReply, ProbeOrder, Reply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.runtimes.engine_cache import EngineCache
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
SHORT = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=6, min_s=0, half_width_percent=1000)
TENSORRT = RuntimeSetting(provider="tensorrt")
CUDA = RuntimeSetting(provider="cuda")
SMALLEST = SPACE.decode(SPACE.smallest())[0]
LARGEST = SPACE.decode(SPACE.largest())[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("jetson") / "digits.supernet", SPACE)


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVIDIA's onnxruntime in every child process; the file that tells what it did."""
    return become_jetson(tmp_path, monkeypatch)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "state" / "engines"


@pytest.fixture
def worker(tmp_path: Path, engines: Path) -> Iterator[Worker]:
    worker = Worker(child_command(tmp_path / "lock", engine_folder=engines))
    yield worker
    worker.close()


def measure(
    worker: Worker, bundle: SupernetBundle, setting: RuntimeSetting, architecture: Architecture = SMALLEST
) -> Reply:
    worker.submit(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=architecture,
            setting=setting,
            protocol=SHORT,
        )
    )
    return final_reply(worker)


def measured(reply: Reply) -> MeasuredReply:
    assert isinstance(reply, MeasuredReply), reply
    return reply


# -- the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["session", "run"])
def test_the_engine_is_built_while_loading_and_never_while_timing(
    jetson: Path, worker: Worker, bundle: SupernetBundle, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setenv("JETSON_BUILD", moment)
    reply = measured(measure(worker, bundle, TENSORRT))
    assert reply.provider == "TensorrtExecutionProvider"
    lines = jetson.read_text().splitlines()
    builds = [index for index, line in enumerate(lines) if line.startswith("built")]
    assert len(builds) == 1
    # One inference settles the session; those after it are the warm-up's and the timed ones.
    assert builds[0] < lines.index("infer TensorrtExecutionProvider")
    assert lines.count("infer TensorrtExecutionProvider") >= 1 + 1 + reply.timing.runs * reply.timing.inner_loops
    assert reply.load_ms >= float(lines[builds[0]].split()[1])


def test_an_engine_is_kept_with_the_agents_state_and_built_once_per_model(
    jetson: Path, worker: Worker, bundle: SupernetBundle, engines: Path
) -> None:
    first = measured(measure(worker, bundle, TENSORRT))
    worker.kill()  # a new process must find it
    again = measured(measure(worker, bundle, TENSORRT))
    assert first.model_sha256 == again.model_sha256
    said = [line.split()[0] for line in jetson.read_text().splitlines() if not line.startswith("infer")]
    assert said == ["built", "cached"]
    assert len(list((engines / first.model_sha256).glob("*.engine"))) == 1
    assert (engines / "timings" / "TensorrtExecutionProvider_cache_sm87.timing").exists()


def test_two_subnets_whose_graphs_have_the_same_names_never_share_an_engine(
    jetson: Path, worker: Worker, bundle: SupernetBundle
) -> None:
    for architecture in (SMALLEST, LARGEST, SMALLEST, LARGEST):
        measured(measure(worker, bundle, TENSORRT, architecture))
    said = [line.split()[:2] for line in jetson.read_text().splitlines() if not line.startswith("infer")]
    assert [line[0] for line in said] == ["built", "built", "cached", "cached"]
    assert [line[1] for line in said[2:]] == ["fresh", "fresh"]


def test_a_state_folder_that_cannot_be_written_costs_builds_and_no_measurement(
    jetson: Path, worker: Worker, bundle: SupernetBundle, engines: Path
) -> None:
    engines.parent.mkdir()
    engines.write_text("in the way")
    for _ in range(2):
        measured(measure(worker, bundle, TENSORRT))
    assert [line.split()[0] for line in jetson.read_text().splitlines() if "infer" not in line] == ["built", "built"]


def test_the_least_recently_used_engines_make_room(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", max_bytes=250)
    for age, name in enumerate(("a", "b", "c")):
        folder = cache.folder(name)
        assert folder is not None
        (folder / "x.engine").write_bytes(bytes(100))
        os.utime(folder, (1000 + age, 1000 + age))
    os.utime(tmp_path / "engines" / "a", (2000, 2000))  # used again since
    (cache.timings / "x.timing").write_bytes(bytes(1000))
    cache.folder("c")
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == ["a", "c", "timings"]


# -- what really runs ------------------------------------------------------------------------------------------------


def test_cuda_is_a_provider_of_its_own(jetson: Path, worker: Worker, bundle: SupernetBundle) -> None:
    assert measured(measure(worker, bundle, CUDA)).provider == "CUDAExecutionProvider"
    assert set(jetson.read_text().splitlines()) == {"infer CUDAExecutionProvider"}


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("no tensorrt", "offers cpu, cuda"),
        ("library missing", "would run on CUDAExecutionProvider"),
        ("processor only", "every node of the model ran on CPUExecutionProvider"),
    ],
)
def test_without_tensorrt_nothing_is_measured_on_something_else(
    jetson: Path, worker: Worker, bundle: SupernetBundle, monkeypatch: pytest.MonkeyPatch, trouble: str, says: str
) -> None:
    monkeypatch.setenv("JETSON_TROUBLE", trouble)
    reply = measure(worker, bundle, TENSORRT)
    assert isinstance(reply, FailedReply), reply
    assert reply.reason == "provider_fallback"
    assert says in reply.detail


def test_nodes_that_stay_with_another_provider_are_told(
    jetson: Path, worker: Worker, bundle: SupernetBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_TROUBLE", "partial")
    assert measured(measure(worker, bundle, TENSORRT)).provider == "TensorrtExecutionProvider + 1 on cpu + 2 on cuda"


def test_the_probe_offers_the_accelerators(jetson: Path, worker: Worker) -> None:
    worker.submit(ProbeOrder(setting=TENSORRT, micro_benchmarks=False))
    reply = final_reply(worker)
    assert isinstance(reply, ProbedReply), reply
    assert {"cpu", "cuda", "tensorrt"} <= set(reply.providers)
    assert reply.active_provider == "TensorrtExecutionProvider"


# -- the board -------------------------------------------------------------------------------------------------------


def test_an_orin_nano_is_recognised_with_its_sensors(tmp_path: Path) -> None:
    root = write_files(tmp_path, jetson_orin_nano_files())
    profile = describe_device(root, machine="aarch64")
    assert (profile.profile, profile.accelerator) == ("jetson_orin_nano", "1024-core Ampere GPU")
    assert [(cluster.name, cluster.cores) for cluster in profile.clusters] == [("Cortex-A78AE", 6)]
    sensors = Sensors(root)
    now = sensors.read()
    assert (now.temperature_c, now.clock_mhz, now.governor, now.throttled) == (48.625, 1344.0, "schedutil", False)
    write_files(tmp_path, {"sys/class/hwmon/hwmon0/oc3_event_cnt": "5\n"})
    assert sensors.read().throttled is True, "it drew too much current"
    assert not sensors.clock_is_fixed()
    for number in range(6):
        write_files(tmp_path, {f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_min_freq": "1510400\n"})
    assert sensors.clock_is_fixed(), "as after jetson_clocks"


def test_release_mode_and_meter_are_announced(jetson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "board", jetson_orin_nano_files())
    expected = {"linux-for-tegra": "36.4.3", "power-mode": "15W", "power-meter": "ina3221 VDD_IN"}
    assert board_versions(root) == expected
    monkeypatch.setenv("JETSON_POWER_MODE", "MAXN_SUPER")
    assert board_versions(root)["power-mode"] == "MAXN_SUPER"
    assert board_versions(tmp_path / "no board") == {}


def test_the_doctor_loads_every_accelerator_for_real(
    jetson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))

    def accelerators() -> dict[str, str]:
        found = load_runtime("onnxruntime")
        return {finding.name: finding.status for finding in found if finding.name in ("cuda", "tensorrt")}

    assert accelerators() == {"cuda": "ok", "tensorrt": "ok"}
    monkeypatch.setenv("JETSON_TROUBLE", "library missing")
    assert accelerators() == {"cuda": "ok", "tensorrt": "warning"}


@pytest.mark.parametrize(
    ("mode", "status", "fix"),
    [
        ("MAXN_SUPER", "ok", ""),
        ("15W", "warning", "sudo nvpmodel -m 2"),
        ("25W", "warning", "sudo nvpmodel -m 2"),
        (None, "warning", "sudo nvpmodel -q"),
    ],
)
def test_the_doctor_asks_for_the_highest_power_mode(tmp_path: Path, mode: str | None, status: str, fix: str) -> None:
    board = write_files(tmp_path, power_mode_files({0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}))
    finding = power_mode_finding(mode, highest_power_mode(board))
    assert (finding.status, finding.fix) == (status, fix)


@pytest.mark.parametrize(
    ("modes", "highest"),
    [
        ({0: "15W", 1: "25W", 2: "MAXN_SUPER"}, 2),  # Orin Nano, JetPack 6.2
        ({0: "15W", 1: "7W"}, 0),  # Orin Nano before: no mode without caps
        ({0: "MAXN", 1: "10W", 2: "15W", 3: "25W", 4: "40W", 5: "MAXN_SUPER"}, 5),
        ({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}, 0),  # AGX Orin
        ({0: "MODE_15W_2CORE", 1: "MODE_15W_4CORE", 2: "MODE_15W_6CORE", 3: "MODE_10W_2CORE"}, 2),  # Xavier NX
        ({0: "MAX-N", 1: "MAX-Q"}, 0),
    ],
)
def test_the_highest_mode_is_read_from_the_board(tmp_path: Path, modes: dict[int, str], highest: int) -> None:
    found = highest_power_mode(write_files(tmp_path, power_mode_files(modes)))
    assert found is not None
    assert (found.number, found.name) == (highest, modes[highest])


def test_without_a_table_of_modes_no_number_is_advised(tmp_path: Path) -> None:
    assert highest_power_mode(tmp_path) is None
    assert power_mode_finding("MAXN", None).status == "ok"
    assert "-m ID" in power_mode_finding("15W", None).fix

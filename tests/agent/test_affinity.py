"""Cores and threads: what a setting asks for, and what is really active."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.agent_rig import ScriptedMeasurer, final_reply
from rigs.runtime_stand_ins import attach_phone

from fleetnas.agent.host.limits import Limits
from fleetnas.agent.measuring.messages import FailedReply, ProbedReply, ProbeOrder, Reply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.runtimes.adb_runtime import AdbRuntime
from fleetnas.agent.runtimes.settings import IN_PROCESS, parse_setting
from fleetnas.agent.service import running
from fleetnas.agent.service.agent_info import agent_info
from fleetnas.agent.service.state_folder import StateFolder
from fleetnas.device_profiles.profile import MicroBenchmarks
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.graph import INPUT, OUTPUT, GlobalAveragePool, Graph, Linear
from fleetnas.supernet_export.model_file import emit

ALLOWED = tuple(sorted(os.sched_getaffinity(0)))
#: A core that no machine of today has.
ABSENT = 1023


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(child_command(tmp_path / "lock"))
    yield worker
    worker.close()


def probe(worker: Worker, **fields: object) -> Reply:
    setting = RuntimeSetting.model_validate(fields)
    worker.submit(ProbeOrder(setting=setting, micro_benchmarks=False))
    return final_reply(worker)


# -- really active ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", IN_PROCESS)
def test_the_cores_that_are_active_are_told(worker: Worker, runtime: str) -> None:
    for affinity in ((ALLOWED[-1],), ()):
        reply = probe(worker, runtime=runtime, affinity=affinity)
        assert isinstance(reply, ProbedReply), reply
        assert reply.cores == (affinity or ALLOWED)


@pytest.mark.parametrize(
    ("affinity", "missing"),
    [((ALLOWED[0], ABSENT), "1023"), ((ABSENT,), "1023"), ((4095,), "4095")],
)
def test_cores_that_are_not_there_are_an_error_and_not_left_out(
    worker: Worker, affinity: tuple[int, ...], missing: str
) -> None:
    reply = probe(worker, affinity=affinity)
    assert isinstance(reply, FailedReply), reply
    assert (reply.reason, reply.usage) == ("runtime", True)
    assert f"{missing} are offline, not there, or not allowed here" in reply.detail
    assert "this process may use" in reply.detail
    after = probe(worker)
    assert isinstance(after, ProbedReply)
    assert after.cores == ALLOWED, "the setting after it is not pinned"


def test_a_core_that_the_agent_may_not_use_is_not_there(tmp_path: Path) -> None:
    if len(ALLOWED) < 2:
        pytest.skip("this machine has one core")
    program = f"import os; os.sched_setaffinity(0, {{{ALLOWED[0]}}})\nfrom fleetnas.agent.cli.main import main; main()"
    model = ("bench", str(write_model(tmp_path)), "--time", "0", "--runs", "3")
    environment = {**os.environ, "FLEETNAS_HOST_LOCK": str(tmp_path / "lock")}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", program, *model, *more]
        return waiting.run(words, env=environment)

    refused = run("--affinity", f"{ALLOWED[0]}-{ALLOWED[1]}")
    assert refused.returncode == 2
    assert f"this process may use {ALLOWED[0]}, so change `affinity`" in refused.stderr
    warned = run("--threads", "2")
    assert warned.returncode == 0
    assert "asks for 2 threads and may run on 1 cores only" in warned.stderr
    assert f"cores {ALLOWED[0]}\n" in warned.stdout


def write_model(folder: Path) -> Path:
    import numpy as np

    head = Linear(name=OUTPUT, source="pool", weight=np.ones((2, 3), np.float32), bias=np.zeros(2, np.float32))
    graph = Graph((GlobalAveragePool(name="pool", source=INPUT), head), input_shape=(3, 8, 8), classes=2)
    path = folder / "model.onnx"
    path.write_bytes(emit(graph, "onnxruntime"))
    return path


@pytest.mark.parametrize(
    ("affinity", "says"),
    [((4, 5, 6, 7), ""), ((7, 8), "would run it on 7"), ((9,), "would run it on cores that it does not name")],
)
def test_a_phone_runs_on_the_cores_asked_for_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: tuple[int, ...], says: str
) -> None:
    import numpy as np

    attach_phone(tmp_path, monkeypatch)
    head = Linear(name=OUTPUT, source="pool", weight=np.ones((2, 3), np.float32), bias=np.zeros(2, np.float32))
    graph = Graph((GlobalAveragePool(name="pool", source=INPUT), head), input_shape=(3, 8, 8), classes=2)
    setting = RuntimeSetting(runtime="adb", affinity=affinity)
    if says:
        with pytest.raises(UsageError, match=says):
            AdbRuntime().load(emit(graph, "adb"), setting)
    else:
        AdbRuntime().load(emit(graph, "adb"), setting)


@pytest.mark.parametrize("text", ["7-4", "0-999999999", "0-256", "-1", "1-", "0+", "", "99999", "٣", "1e3"])
def test_a_list_of_cores_that_is_none_is_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError, match="is not a list of cores such as 0-3"):
        parse_setting(f"onnxruntime,affinity={text}")


# -- the cache of probes ---------------------------------------------------------------------------------------------


def asked(measurer: ScriptedMeasurer) -> list[tuple[str, bool]]:
    orders = [order for order in measurer.orders if isinstance(order, ProbeOrder)]
    return [(order.setting.label, order.micro_benchmarks) for order in orders]


def test_the_cache_vouches_only_for_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        RuntimeSetting(),
        RuntimeSetting(threads=2),
        RuntimeSetting(affinity=(0,)),
        RuntimeSetting(precision="int8"),
        RuntimeSetting(graph_optimisation="basic"),
    ]
    good = ProbedReply(
        version="1", providers=("cpu",), active_provider="CPU", micro_benchmarks=MicroBenchmarks(gemm_gflops=1.0)
    )
    measurer = ScriptedMeasurer()

    def start(offered: list[RuntimeSetting]) -> None:
        measurer.orders.clear()
        measurer.script.extend([good] * len(offered))
        agent_info("pi", 1, offered, measurer, tmp_path / "probes")
        measurer.script.clear()

    start(settings)
    assert asked(measurer) == [(setting.label, setting == settings[0]) for setting in settings]
    start(settings)
    assert asked(measurer) == [], "all of them were tried"
    start([RuntimeSetting(affinity=(1,))])
    assert asked(measurer) == [("onnxruntime_cpu_1t_fp32_core1", True)]
    monkeypatch.setattr("fleetnas.agent.service.agent_info.allowed_cores", lambda root: (0,))
    start([settings[1]])
    assert [label for label, _ in asked(measurer)] == [settings[1].label], "a container leaves other cores"
    measurer.script.append(FailedReply(reason="runtime", detail="no such core", usage=True))
    with pytest.raises(UsageError, match="no such core"):
        agent_info("pi", 1, [RuntimeSetting(affinity=(2,))], measurer, tmp_path / "probes")
    measurer.script.append(FailedReply(reason="runtime", detail="does not load"))
    with pytest.raises(RuntimeUnavailableError, match="does not load"):
        agent_info("pi", 1, [RuntimeSetting(affinity=(2,))], measurer, tmp_path / "probes")


def test_a_setting_is_tried_as_it_is(worker: Worker) -> None:
    for fields in ({"precision": "int8", "threads": 2}, {"runtime": "litert", "precision": "int8"}):
        assert isinstance(probe(worker, **fields), ProbedReply), fields


def test_the_agent_warns_once_of_threads_that_must_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "read_limits", lambda: Limits((0, 1), None, None))
    with caplog.at_level(logging.WARNING, "fleetnas.agent"):
        settings = [RuntimeSetting(threads=1), RuntimeSetting(threads=4)]
        running.warn_before_serving(StateFolder(tmp_path, "lab", "pi"), settings)
    (line,) = caplog.messages
    assert "asks for 4 threads and may run on 2 cores only" in line

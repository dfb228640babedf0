"""One suite that every runtime passes, in the real measuring child; devices that are not at hand have stand-ins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rigs.agent_rig import final_reply
from rigs.runtime_stand_ins import attach_phone, become_jetson, provide_command
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.messages import (
    BenchOrder,
    FailedReply,
    MeasuredReply,
    MeasureOrder,
    ProbedReply,
    ProbeOrder,
    ReferenceOrder,
    Reply,
)
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
PROTOCOL = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=9, min_s=0, half_width_percent=1000)
StandIn = Callable[[Path, pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Case:
    """A runtime and provider, where it comes from, and what the active provider is called."""

    name: str
    setting: RuntimeSetting
    active: str
    stand_in: StandIn | None = None
    #: TensorRT takes signed symmetric int8 only, which our ONNX models are not.
    int8: bool = True
    #: Cores of the device that runs the model; empty: this host's.
    cores: tuple[int, ...] = ()


def _setting(runtime: str, provider: str = "cpu") -> RuntimeSetting:
    return RuntimeSetting.model_validate({"runtime": runtime, "provider": provider})


CASES = (
    Case("onnxruntime", _setting("onnxruntime"), "CPUExecutionProvider"),
    Case("onnxruntime-xnnpack", _setting("onnxruntime", "xnnpack"), "XnnpackExecutionProvider"),
    Case("onnxruntime-cuda", _setting("onnxruntime", "cuda"), "CUDAExecutionProvider", become_jetson),
    Case(
        "onnxruntime-tensorrt", _setting("onnxruntime", "tensorrt"), "TensorrtExecutionProvider", become_jetson, False
    ),
    Case("litert", _setting("litert"), "XNNPACK"),
    Case("litert-xnnpack", _setting("litert", "xnnpack"), "XNNPACK"),
    Case("litert-builtin", _setting("litert", "builtin"), "builtin"),
    Case("adb", _setting("adb"), "cpu", attach_phone, cores=(6, 7)),
    Case("command", _setting("command"), "cpu", provide_command),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    return random_bundle(tmp_path_factory.mktemp("conformance") / "digits.supernet", SPACE)


# One child does all of a runtime's tests, as it does all orders of an agent; hence one process of pytest too.
@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(f"runtime-{case.name}")) for case in CASES],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    chosen: Case = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        if chosen.stand_in is not None:
            chosen.stand_in(tmp_path_factory.mktemp("stand-in"), monkeypatch)
        yield chosen


@pytest.fixture(scope="module")
def worker(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    worker = Worker(child_command(folder / "lock", engine_folder=folder / "engines"))
    offered = ask(
        worker, ProbeOrder(setting=case.setting.model_copy(update={"provider": "cpu"}), micro_benchmarks=False)
    )
    if not isinstance(offered, ProbedReply):
        assert isinstance(offered, FailedReply)
        worker.close()
        pytest.skip(offered.detail)
    if case.setting.provider not in offered.providers:
        worker.close()
        pytest.skip(f"this build of {offered.version} has no {case.setting.provider}")
    yield worker
    worker.close()


def ask(worker: Worker, order: MeasureOrder | BenchOrder | ProbeOrder) -> Reply:
    worker.submit(order)
    return final_reply(worker)


def measure(worker: Worker, bundle: SupernetBundle, setting: RuntimeSetting) -> MeasuredReply:
    reply = ask(
        worker,
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=SPACE.decode(SPACE.smallest())[0],
            setting=setting,
            protocol=PROTOCOL,
            references=ReferenceOrder(),
        ),
    )
    assert isinstance(reply, MeasuredReply), reply
    return reply


class TestEveryRuntime:
    def test_measures_a_subnet_and_says_what_ran_it(self, case: Case, worker: Worker, bundle: SupernetBundle) -> None:
        reply = measure(worker, bundle, case.setting)
        timing = reply.timing
        assert reply.provider.startswith(case.active)
        assert timing.runs >= PROTOCOL.min_runs
        assert len(timing.block_medians_ms) >= PROTOCOL.blocks
        assert 0 < timing.min_ms <= timing.median_ms
        assert timing.times_us
        assert timing.inference_s > 0
        assert reply.paired is not None
        assert reply.paired.timing == timing

    def test_the_same_model_is_the_same_file_every_time(
        self, case: Case, worker: Worker, bundle: SupernetBundle
    ) -> None:
        first, again = (measure(worker, bundle, case.setting) for _ in range(2))
        assert (first.model_sha256, first.model_bytes) == (again.model_sha256, again.model_bytes)

    def test_int8_is_a_smaller_model_of_its_own(self, case: Case, worker: Worker, bundle: SupernetBundle) -> None:
        if not case.int8:
            pytest.skip(f"{case.active} does not take our int8 models")
        whole = measure(worker, bundle, case.setting)
        small = measure(worker, bundle, case.setting.model_copy(update={"precision": "int8"}))
        assert small.model_sha256 != whole.model_sha256
        assert small.model_bytes < 0.8 * whole.model_bytes

    def test_threads_and_cores_are_taken(self, case: Case, worker: Worker, bundle: SupernetBundle) -> None:
        here = tuple(sorted(os.sched_getaffinity(0)))
        cores = case.cores or here[-1:]
        measure(worker, bundle, case.setting.model_copy(update={"threads": 2, "affinity": cores}))
        if not case.cores:
            assert worker.pid is not None
            assert os.sched_getaffinity(worker.pid) == set(cores)
            measure(worker, bundle, case.setting)
            assert os.sched_getaffinity(worker.pid) == set(here), "an unpinned setting has all cores again"

    def test_a_provider_that_is_not_there_is_never_replaced_by_another(
        self, case: Case, worker: Worker, bundle: SupernetBundle
    ) -> None:
        setting = case.setting.model_copy(update={"provider": "no-such-chip"})
        reply = ask(worker, ProbeOrder(setting=setting, micro_benchmarks=False))
        assert isinstance(reply, FailedReply)
        assert reply.reason == "provider_fallback"
        measure(worker, bundle, case.setting)

    def test_rubbish_instead_of_a_model_is_refused_and_the_next_one_works(
        self, case: Case, worker: Worker, bundle: SupernetBundle, tmp_path: Path
    ) -> None:
        rubbish = tmp_path / "rubbish"
        rubbish.write_bytes(b"this is no model" * 20)
        reply = ask(worker, BenchOrder(model_path=str(rubbish), setting=case.setting, protocol=PROTOCOL))
        assert isinstance(reply, FailedReply)
        assert reply.reason == "runtime"
        measure(worker, bundle, case.setting)

    def test_it_says_what_it_is_and_takes_micro_benchmarks(self, case: Case, worker: Worker) -> None:
        reply = ask(worker, ProbeOrder(setting=case.setting))
        assert isinstance(reply, ProbedReply), reply
        assert reply.version
        assert reply.active_provider.startswith(case.active)
        assert reply.micro_benchmarks.gemm_gflops is not None
        assert reply.micro_benchmarks.session_overhead_us is not None

"""Real child processes that hang, crash, hoard memory or write rubbish; the next order always works."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.agent_rig import final_reply, next_reply
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.host_lock import MAX_WAIT_S
from fleetnas.agent.measuring.messages import (
    BenchOrder,
    FailedReply,
    MeasuredReply,
    MeasureOrder,
    Order,
    PhaseReply,
    ProbedReply,
    ProbeOrder,
    ReferenceOrder,
    Reply,
    SlowReply,
)
from fleetnas.agent.measuring.references import ladder
from fleetnas.agent.measuring.worker import Worker, child_command, replies_of
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.spaces.registry import make_space

RIGS = Path(__file__).parent.parent / "rigs"
SHORT = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, half_width_percent=1000)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "host.lock"


@pytest.fixture
def faulty(lock: Path) -> Iterator[Worker]:
    worker = Worker([sys.executable, str(RIGS / "faulty_child.py"), str(lock)])
    yield worker
    worker.kill()


@pytest.fixture
def worker(lock: Path) -> Iterator[Worker]:
    worker = Worker(child_command(lock))
    yield worker
    worker.close()


def order(fault: str) -> BenchOrder:
    return BenchOrder(model_path=fault, setting=RuntimeSetting(), protocol=SHORT)


def outcome(worker: Worker, fault: str) -> Reply:
    worker.submit(order(fault))
    return final_reply(worker)


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("segfault", "crashed", "SIGSEGV"),
        ("killed", "crashed", "SIGKILL"),
        ("exit", "crashed", "code 3; it last wrote: the accelerator's driver gave up"),
        ("memory", "out_of_memory", "MemoryError"),
        ("rubbish", "bad_output", "invalid reply"),
        ("json", "bad_output", "invalid reply"),
        ("raise", "internal", "KeyError"),
    ],
)
def test_a_broken_child_is_a_failure_with_its_reason_and_the_next_order_works(
    faulty: Worker, fault: str, reason: str, detail: str
) -> None:
    reply = outcome(faulty, fault)
    assert isinstance(reply, FailedReply)
    assert reply.reason == reason
    assert detail in reply.detail
    assert isinstance(outcome(faulty, "none"), MeasuredReply)


def test_a_child_that_closes_its_output_and_lives_on_is_killed_and_the_next_order_works(lock: Path) -> None:
    worker = Worker([sys.executable, str(RIGS / "faulty_child.py"), str(lock)], exit_timeout_s=0.1)
    try:
        reply = outcome(worker, "closed")
        assert isinstance(reply, FailedReply)
        assert (reply.reason, "closed its output" in reply.detail) == ("bad_output", True)
        assert isinstance(outcome(worker, "none"), MeasuredReply)
    finally:
        worker.kill()


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group whose processes the kernel kills beyond 150 MB; skips where none can be made."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"fleetnas-test-{os.getpid()}"
    limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if version_1.is_dir() else ("memory.max",)
    try:
        group.mkdir()
        for name in limits:
            if name == limits[0] or (group / name).exists():
                (group / name).write_text(str(150 * 1024**2))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"memory cannot be limited by a control group here: {error}")
    yield group
    group.rmdir()


def test_a_child_killed_for_memory_differs_from_one_that_a_user_killed(faulty: Worker, memory_group: Path) -> None:
    outcome(faulty, "none")
    (memory_group / "cgroup.procs").write_text(str(faulty.pid))
    reply = outcome(faulty, "hoard")
    assert isinstance(reply, FailedReply)
    assert (reply.reason, "SIGKILL" in reply.detail) == ("out_of_memory", True)
    assert isinstance(outcome(faulty, "none"), MeasuredReply)


def test_a_hanging_child_is_killed_and_replaced(faulty: Worker) -> None:
    faulty.submit(order("hang"))
    while getattr(next_reply(faulty), "phase", None) != "measuring":
        continue
    hanging = faulty.pid
    assert hanging is not None
    assert faulty.poll(0) is None
    faulty.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    assert isinstance(outcome(faulty, "none"), MeasuredReply)
    assert faulty.pid != hanging


def test_what_libraries_print_does_not_reach_the_pipe(faulty: Worker) -> None:
    assert isinstance(outcome(faulty, "chatter"), MeasuredReply)


def test_the_child_stays_warm_between_orders(faulty: Worker) -> None:
    outcome(faulty, "none")
    first = faulty.pid
    outcome(faulty, "none")
    assert faulty.pid == first


def test_a_child_that_was_let_go_is_gone_and_the_next_order_gets_another(faulty: Worker) -> None:
    outcome(faulty, "none")
    first = faulty.pid
    assert first is not None
    faulty.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert isinstance(outcome(faulty, "none"), MeasuredReply)


def test_a_child_that_died_while_idle_is_replaced_unnoticed(faulty: Worker) -> None:
    outcome(faulty, "none")
    assert faulty.pid is not None
    os.kill(faulty.pid, signal.SIGKILL)
    assert isinstance(outcome(faulty, "none"), MeasuredReply)


def test_one_host_measures_one_model_at_a_time(faulty: Worker, lock: Path) -> None:
    lock.touch()
    with lock.open() as other_agent:
        fcntl.flock(other_agent, fcntl.LOCK_EX)
        faulty.submit(order("none"))
        reply = next_reply(faulty)
        assert isinstance(reply, PhaseReply)
        assert (reply.phase, str(lock) in reply.detail) == ("waiting", True)
        assert faulty.poll(0) is None
    assert next_reply(faulty) == PhaseReply(phase="building")
    assert isinstance(final_reply(faulty), MeasuredReply)


def test_the_child_dies_with_its_agent(lock: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fleetnas.agent.measuring.worker import Worker, child_command\n"
        "from fleetnas.agent.measuring.messages import ProbeOrder\n"
        "from fleetnas.fleet_protocol.messages import RuntimeSetting\n"
        f"worker = Worker(child_command(Path({str(lock)!r})))\n"
        "worker.submit(ProbeOrder(setting=RuntimeSetting(), micro_benchmarks=False))\n"
        "worker.poll(60); print(worker.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        child = int(waiting.line(agent))
        agent.kill()
    waiting.until(lambda: waiting.gone(child), what="the child outlived its agent")


class SilentMeasurer:
    """Says what it was given, and None where it says nothing within the time."""

    def __init__(self, *said: Reply | None) -> None:
        self._said = iter(said)
        self.limits_s: list[float] = []

    def submit(self, order: Order) -> None:
        raise NotImplementedError

    def poll(self, timeout_s: float) -> Reply | None:
        self.limits_s.append(timeout_s)
        return next(self._said)

    def kill(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def test_the_wait_for_the_host_lock_has_its_own_limit() -> None:
    waiting, building = PhaseReply(phase="waiting"), PhaseReply(phase="building")
    failed = FailedReply(reason="runtime")
    measurer = SilentMeasurer(waiting, building, failed)
    assert list(replies_of(measurer, 1.0)) == [waiting, building, failed]
    assert measurer.limits_s == [1.0, 1.0 + MAX_WAIT_S, 1.0]
    assert list(replies_of(SilentMeasurer(waiting, None), 1.0)) == [waiting]
    assert list(replies_of(SilentMeasurer(None), 1.0)) == []


# -- the real child on real models -------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_subnet_is_built_and_measured_in_turns_with_references(worker: Worker, tmp_path: Path, runtime: str) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    setting = RuntimeSetting.model_validate({"runtime": runtime})
    rungs = {rung.fingerprint for rung in ladder(space)}
    subnet = MeasureOrder(
        bundle_path=str(bundle.path),
        bundle_sha256=bundle.sha256,
        architecture=space.decode(space.largest())[0],
        setting=setting,
        protocol=SHORT.model_copy(update={"min_s": 0.1}),
        references=ReferenceOrder(keep_levels=True),
    )
    worker.submit(subnet)
    first = final_reply(worker)
    assert isinstance(first, MeasuredReply)
    paired = first.paired
    assert paired is not None
    assert paired.timing == first.timing
    assert first.levels_ms.keys() == rungs
    assert paired.reference == subnet.architecture.fingerprint, "the nearest in size of the largest is the largest"
    assert paired.reference_ms == first.levels_ms[paired.reference]
    assert paired.rounds >= 4
    assert first.model_bytes > 10_000
    assert 0 < paired.subject_inference_s + paired.reference_inference_s < first.inference_s < first.busy_s
    # Known levels are not read again.
    known = ReferenceOrder(levels_ms={name: 1000 * level for name, level in first.levels_ms.items()})
    worker.submit(subnet.model_copy(update={"references": known.model_copy(update={"keep_levels": True})}))
    again = final_reply(worker)
    assert isinstance(again, MeasuredReply)
    assert again.model_sha256 == first.model_sha256
    assert again.levels_ms == known.levels_ms
    assert again.paired is not None
    assert again.paired.slowdown < 1.0

    # A device that is slower than allowed stops the measurement before it begins.
    slow = ReferenceOrder(levels_ms=first.levels_ms, slow_above=0.001)
    worker.submit(subnet.model_copy(update={"references": slow}))
    reply = final_reply(worker)
    assert isinstance(reply, SlowReply)
    assert reply.slowdown is not None
    assert reply.slowdown > 0.001


def test_levels_found_too_high_are_lowered_and_all_are_read_again(worker: Worker, tmp_path: Path) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    order = MeasureOrder(
        bundle_path=str(bundle.path),
        bundle_sha256=bundle.sha256,
        architecture=space.decode(space.largest())[0],
        setting=RuntimeSetting(),
        protocol=SHORT.model_copy(update={"min_s": 0.05}),
        references=ReferenceOrder(keep_levels=True),
    )
    worker.submit(order)
    first = final_reply(worker)
    assert isinstance(first, MeasuredReply)
    slowed = {name: 50 * level for name, level in first.levels_ms.items()}
    replies = []
    for _ in range(2):
        levels = replies[-1].levels_ms if replies else slowed
        worker.submit(order.model_copy(update={"references": ReferenceOrder(levels_ms=levels)}))
        reply = final_reply(worker)
        assert isinstance(reply, MeasuredReply)
        replies.append(reply)
    lowered, read_again = replies
    changed = [name for name, level in lowered.levels_ms.items() if level != slowed[name]]
    assert lowered.paired is not None
    assert changed == [lowered.paired.reference]
    assert all(level < slowed[name] / 2 for name, level in read_again.levels_ms.items())


def test_a_runtime_with_room_for_one_reference_has_the_smallest(worker: Worker, tmp_path: Path) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    worker.submit(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=space.decode(space.largest())[0],
            setting=RuntimeSetting(),
            protocol=SHORT,
            references=ReferenceOrder(at_most=1),
        )
    )
    reply = final_reply(worker)
    assert isinstance(reply, MeasuredReply)
    assert list(reply.levels_ms) == [space.decode(space.smallest())[0].fingerprint]


def test_failures_of_the_order_itself_keep_the_child(worker: Worker, tmp_path: Path) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    good = MeasureOrder(
        bundle_path=str(bundle.path),
        bundle_sha256=bundle.sha256,
        architecture=space.decode(space.smallest())[0],
        setting=RuntimeSetting(),
        protocol=SHORT,
    )
    worker.submit(good)
    assert isinstance(final_reply(worker), MeasuredReply)
    child = worker.pid
    calibration = tmp_path / "calibration"
    calibration.write_bytes(b"rubbish")
    bad = [
        ("architecture", good.model_copy(update={"architecture": Architecture(ks=(3,), e=(3,), d=(2,), r=16)})),
        ("bundle", good.model_copy(update={"bundle_sha256": "0" * 64})),
        ("bundle", good.model_copy(update={"bundle_path": str(tmp_path / "absent")})),
        ("bundle", good.model_copy(update={"calibration_path": str(calibration), "calibration_sha256": "0" * 64})),
        ("provider_fallback", good.model_copy(update={"setting": RuntimeSetting(provider="no-such-chip")})),
        ("runtime", good.model_copy(update={"setting": RuntimeSetting(affinity=(4095,))})),
        ("runtime", BenchOrder(model_path=str(calibration), setting=RuntimeSetting(), protocol=SHORT)),
        ("runtime", BenchOrder(model_path=str(tmp_path / "absent"), setting=RuntimeSetting(), protocol=SHORT)),
    ]
    for reason, wrong in bad:
        if reason == "bundle" and wrong.bundle_path != good.bundle_path:
            wrong = wrong.model_copy(update={"bundle_sha256": "1" * 64})  # not the one that is open
        worker.submit(wrong)
        reply = final_reply(worker)
        assert isinstance(reply, FailedReply), wrong
        assert reply.reason == reason, reply
    assert worker.pid == child
    worker.submit(good)
    assert isinstance(final_reply(worker), MeasuredReply)


def test_the_probe_loads_the_runtime_and_measures_what_it_can_do(worker: Worker) -> None:
    worker.submit(ProbeOrder(setting=RuntimeSetting()))
    reply = final_reply(worker)
    assert isinstance(reply, ProbedReply)
    assert "cpu" in reply.providers
    assert reply.active_provider == "CPUExecutionProvider"
    assert all(value is not None and value > 0 for value in reply.micro_benchmarks.model_dump().values())


def test_a_child_that_cannot_start_is_a_failure_and_not_a_loop() -> None:
    worker = Worker([sys.executable, "-c", "import sys; sys.exit('no such module')"])
    reply = outcome(worker, "none")
    assert isinstance(reply, FailedReply)
    assert (reply.reason, "no such module" in reply.detail) == ("crashed", True)

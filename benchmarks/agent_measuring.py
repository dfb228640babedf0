"""The agent's own figures: agreement with a bare timing loop, scatter, share of time inside inference, cost when idle.

Scatter: twelve `ofa-mbv3` subnets are measured again and again, one after the other, for `--minutes` per runtime and
mode: with the machine as it is, and while another process streams memory for 5 s and rests for 5 s. Per subnet, the
scatter of latency at undisturbed speed is its median absolute deviation, and its range that from the 5 to the 95 %
quantile; both are given as the mean over the subnets. The range is compared with that of the plain median in the same
measurements.

A bare loop in this process and the agent's child take short turns on the same model files of random `ofa-mbv3` subnets;
the figure is the median, over the turns, of the agent's latency over the mean of the bare loops before and after it, of
the subnet where it is worst. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.brokers import mosquitto
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import BenchOrder, MeasuredReply, MeasureOrder, PhaseReply, ReferenceOrder
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.service import KEEP_CHILD_S
from fleetnas.agent.service.speed_tracker import SpeedTracker
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.interpreters.onnxruntime import import_onnxruntime
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

PROTOCOL = MeasurementProtocol()
#: Short turns, so that bare loop and agent see the same speed of a machine whose speed wanders.
TURN = MeasurementProtocol(warmup_s=0.15, min_s=0.3, min_runs=20, half_width_percent=100.0)
SPACE = make_space("ofa-mbv3")
STREAM = """
import time
import numpy as np
a, b = np.zeros(32_000_000), np.ones(32_000_000)
while True:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        a += b
    time.sleep(5)
"""


def executed(worker: Worker, order: BenchOrder | MeasureOrder) -> MeasuredReply:
    worker.submit(order)
    while isinstance(reply := worker.poll(120), PhaseReply):
        continue
    if not isinstance(reply, MeasuredReply):
        raise SystemExit(f"the agent did not measure: {reply}")
    return reply


def bare_onnxruntime(model: bytes) -> Callable[[], Any]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    item = session.get_inputs()[0]
    feeds = {item.name: np.random.default_rng(0).standard_normal(item.shape).astype(np.float32)}
    return lambda: session.run(None, feeds)


def bare_litert(model: bytes) -> Callable[[], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    item = interpreter.get_input_details()[0]
    interpreter.set_tensor(item["index"], np.random.default_rng(0).standard_normal(item["shape"]).astype(np.float32))
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


BARE = {"onnxruntime": bare_onnxruntime, "litert": bare_litert}


def bare_median_ms(run: Callable[[], Any]) -> float:
    until = time.perf_counter() + TURN.warmup_s
    while time.perf_counter() < until:
        run()
    times = []
    until = time.perf_counter() + TURN.min_s
    while time.perf_counter() < until or len(times) < TURN.min_runs:
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e6


def agreement(figures: Figures, bundle: SupernetBundle, subnets: int, rounds: int) -> None:
    genomes = np.concatenate([SPACE.smallest(), SPACE.largest(), SPACE.sample(subnets, np.random.default_rng(0))])
    worker = Worker(child_command(default_host_lock_path()))
    try:
        for runtime, bare in BARE.items():
            setting = RuntimeSetting.model_validate({"runtime": runtime})
            worst = 0.0
            for architecture in SPACE.decode(genomes):
                model = build_model(bundle, architecture, None, setting)
                with tempfile.NamedTemporaryFile() as file:
                    file.write(model)
                    file.flush()
                    order = BenchOrder(model_path=file.name, setting=setting, protocol=TURN)
                    ratios, before = [], bare_median_ms(bare(model))
                    for _ in range(rounds):
                        # Sessions differ in where their memory lies: both sides make a new one each time.
                        ours, after = executed(worker, order).timing.median_ms, bare_median_ms(bare(model))
                        ratios.append(ours / (before * after) ** 0.5)
                        before = after
                worst = max(worst, abs(statistics.median(ratios) - 1))
            figures.add(f"difference_from_bare_loop_percent_{runtime}", 100 * worst, "<= 1.0")
    finally:
        worker.close()


@dataclass(frozen=True)
class Repeats:
    """Measurements of the subnets in turn; the index of the subnet beside each reply."""

    replies: list[tuple[int, MeasuredReply]]
    seconds: float

    def per_subnet(self, value: Callable[[MeasuredReply], float | None]) -> list[list[float]]:
        """What `value` finds, per subnet; subnets with fewer than three values are left out."""
        found: dict[int, list[float]] = {}
        for index, reply in self.replies:
            number = value(reply)
            if number is not None:
                found.setdefault(index, []).append(number)
        return [values for values in found.values() if len(values) >= 3]


def plain(reply: MeasuredReply) -> float:
    return reply.timing.median_ms


def undisturbed(reply: MeasuredReply) -> float | None:
    """Over the reference's level: a level that was corrected between two measurements changes both alike."""
    paired = reply.paired
    return None if paired is None or paired.undisturbed_ms is None else paired.undisturbed_ms / paired.reference_ms


def scatter_percent(values: list[float]) -> float:
    centre = statistics.median(values)
    return 100 * statistics.median(abs(value - centre) for value in values) / centre


def range_percent(values: list[float]) -> float:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(100 * (high - low) / statistics.median(values))


def repeats(bundle: SupernetBundle, runtime: str, seconds: float) -> Repeats:
    """Measure the twelve subnets in turn, as an agent does, for so long."""
    genomes = np.concatenate([SPACE.smallest(), SPACE.largest(), SPACE.sample(10, np.random.default_rng(5))])
    architectures = SPACE.decode(genomes)
    worker, speed = Worker(child_command(default_host_lock_path())), SpeedTracker()
    replies: list[tuple[int, MeasuredReply]] = []
    begin = time.perf_counter()
    try:
        for index in itertools.cycle(range(len(architectures))):
            if index == 0 and time.perf_counter() - begin > seconds:
                break
            order = MeasureOrder(
                bundle_path=str(bundle.path),
                bundle_sha256=bundle.sha256,
                architecture=architectures[index],
                setting=RuntimeSetting.model_validate({"runtime": runtime}),
                protocol=PROTOCOL,
                references=ReferenceOrder(levels_ms=speed.levels(0), normals=speed.normals(0)),
            )
            reply = executed(worker, order)
            assert reply.paired is not None
            others = {name: level for name, level in reply.levels_ms.items() if name != reply.paired.reference}
            speed.learn_levels(0, others)
            speed.judge(0, reply.paired, throttled=None, ended_unix_s=time.time())
            replies.append((index, reply))
    finally:
        worker.close()
    return Repeats(replies, time.perf_counter() - begin)


@contextmanager
def streaming_neighbour() -> Iterator[None]:
    """A process that streams memory for 5 s, rests for 5 s, and so on."""
    process = subprocess.Popen([sys.executable, "-c", STREAM])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def scatter(figures: Figures, bundle: SupernetBundle, minutes: float) -> None:
    for runtime in BARE:
        for mode, neighbour in (("as_is", nullcontext), ("streaming", streaming_neighbour)):
            with neighbour():
                found = repeats(bundle, runtime, 60 * minutes)
            figures_of(figures, found, f"{runtime}_{mode}")
            if mode == "as_is":
                shares(figures, found, runtime)


def figures_of(figures: Figures, found: Repeats, name: str) -> None:
    told, ran = found.per_subnet(undisturbed), found.per_subnet(plain)
    if not told:
        raise SystemExit(f"{len(found.replies)} measurements of twelve subnets say nothing of scatter; raise --minutes")
    median_range = statistics.mean(map(range_percent, ran))
    own_range = statistics.mean(map(range_percent, told))
    figures.add(f"scatter_undisturbed_percent_{name}", statistics.mean(map(scatter_percent, told)), "<= 1.2")
    figures.add(f"range_over_range_of_medians_{name}", own_range / median_range, "<= 0.25")
    figures.add(f"range_undisturbed_percent_{name}", own_range)
    figures.add(f"scatter_of_medians_percent_{name}", statistics.mean(map(scatter_percent, ran)))
    figures.add(f"range_of_medians_percent_{name}", median_range)
    censored = sum(undisturbed(reply) is None for _, reply in found.replies) / len(found.replies)
    figures.add(f"censored_percent_{name}", 100 * censored)
    figures.add(f"seconds_per_measurement_{name}", found.seconds / len(found.replies))


def shares(figures: Figures, found: Repeats, runtime: str) -> None:
    """Of the time between orders; the first round through the subnets, which loads the references, is left out."""
    replies = [reply for _, reply in found.replies[12:]] or [reply for _, reply in found.replies]
    busy_s = sum(reply.busy_s for reply in replies)
    own_s = sum(reply.paired.subject_inference_s for reply in replies if reply.paired is not None)
    figures.add(f"time_inside_own_inference_percent_{runtime}", 100 * own_s / busy_s, ">= 80.0")
    inside_s = sum(reply.inference_s for reply in replies)
    figures.add(f"time_inside_inference_percent_{runtime}", 100 * inside_s / busy_s, ">= 85.0")


def idle_cost(figures: Figures, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as broker:
        command = [
            sys.executable,
            "-m",
            "fleetnas.agent",
            "run",
            "--broker",
            str(broker.address),
            "--state-dir",
            folder,
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(6 + KEEP_CHILD_S)  # the micro-benchmarks of a first start, and the end of their child
            before = cpu_seconds(process.pid)
            time.sleep(seconds)
            share = (cpu_seconds(process.pid) - before) / seconds
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            resident_mib = sum(resident_kib(pid) for pid in (process.pid, *map(int, children))) / 1024
            modules = Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.terminate()
            process.wait()
    figures.add("idle_cpu_percent_of_a_core", 100 * share, "<= 1.0")
    figures.add("idle_resident_mib", resident_mib, "<= 80.0")
    figures.add("runtimes_loaded_by_the_parent", float("onnxruntime" in modules) + float("litert" in modules), "<= 0")


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--subnets", type=int, default=4, help="random subnets beside the smallest and the largest")
    arguments.add_argument("--rounds", type=int, default=25, help="turns of bare loop and agent per subnet")
    arguments.add_argument("--minutes", type=float, default=10.0, help="repeated measurements, per runtime and mode")
    arguments.add_argument("--idle-seconds", type=float, default=60.0)
    given = arguments.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "ofa.supernet", SPACE, classes=1000, channels=3)
        agreement(figures, bundle, given.subnets, given.rounds)
        scatter(figures, bundle, given.minutes)
    idle_cost(figures, given.idle_seconds)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())

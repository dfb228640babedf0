"""The agent's own figures: agreement with a bare timing loop, scatter, share of time inside inference, cost when idle.

A bare loop in this process and the agent's child take short turns on the same model files of random `ofa-mbv3` subnets;
the figure is the median, over the turns, of the agent's latency over the mean of the bare loops before and after it, of
the subnet where it is worst. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from brokers import mosquitto
from figures import Figures, parser
from supernets import random_bundle

from agent.child_messages import BenchOrder, MeasuredReply, MeasureOrder, PhaseReply
from agent.host_lock import default_host_lock_path
from agent.model_building import build_model
from agent.sentinel import Sentinel
from agent.service import KEEP_CHILD_S
from agent.worker import Worker, child_command
from fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from supernet_export.bundle import SupernetBundle
from supernet_export.session import import_onnxruntime
from supernet_export.spaces.registry import make_space

PROTOCOL = MeasurementProtocol()
#: Short turns, so that bare loop and agent see the same speed of a machine whose speed wanders.
TURN = MeasurementProtocol(warmup_s=0.15, min_s=0.3, min_runs=20, half_width_percent=100.0)
SPACE = make_space("ofa-mbv3")


def carried_out(worker: Worker, order: BenchOrder | MeasureOrder) -> MeasuredReply:
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
                        ours, after = carried_out(worker, order).timing.median_ms, bare_median_ms(bare(model))
                        ratios.append(ours / (before * after) ** 0.5)
                        before = after
                worst = max(worst, abs(statistics.median(ratios) - 1))
            figures.add(f"difference_from_bare_loop_percent_{runtime}", 100 * worst, "<= 1.0")
    finally:
        worker.close()


def scatter_and_share(figures: Figures, bundle: SupernetBundle, repeats: int) -> None:
    worker = Worker(child_command(default_host_lock_path()))
    sentinel = Sentinel()
    medians, busy_s, inside_s = [], 0.0, 0.0
    architectures = SPACE.decode(SPACE.sample(repeats, np.random.default_rng(1)))
    begin = time.perf_counter()
    for architecture in architectures:
        order = MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=architecture,
            setting=RuntimeSetting(),
            protocol=PROTOCOL,
            sentinel=sentinel.order(0, PROTOCOL, time.monotonic(), accept_slow=True),
        )
        reply = carried_out(worker, order)
        sentinel.judge(0, reply.sentinel_before, reply.sentinel_after, time.monotonic())
        inside_s += reply.inference_s
    busy_s = time.perf_counter() - begin
    for _ in range(repeats):
        again = order.model_copy(update={"architecture": architectures[0], "sentinel": None})
        medians.append(carried_out(worker, again).timing.median_ms)
    worker.close()
    figures.add("time_inside_inference_percent", 100 * inside_s / busy_s, ">= 85.0")
    centre = statistics.median(medians)
    mad = statistics.median(abs(value - centre) for value in medians)
    figures.add("scatter_of_repeats_percent", 100 * mad / centre, "<= 2.0")


def idle_cost(figures: Figures, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as broker:
        command = [sys.executable, "-m", "agent.cli", "run", "--broker", str(broker.address), "--state-dir", folder]
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
    arguments.add_argument("--repeats", type=int, default=20, help="measurements of one subnet")
    arguments.add_argument("--idle-seconds", type=float, default=60.0)
    given = arguments.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "ofa.supernet", SPACE, classes=1000, channels=3)
        agreement(figures, bundle, given.subnets, given.rounds)
        scatter_and_share(figures, bundle, given.repeats)
    idle_cost(figures, given.idle_seconds)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())

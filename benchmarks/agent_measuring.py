"""The agent's own figures: agreement with a bare timing loop, scatter, share of time inside inference, cost when idle.

Agreement: twelve `ofa-mbv3` subnets, each timed in blocks of four short turns: a bare loop, the agent twice, the bare
loop (`bare_loop.py`). A subnet's figure is the trimmed mean, over the blocks, of the agent's latency over the bare
loop's, with its 95 % interval; where the interval is wider than the bar, the machine cannot resolve it.

Scatter: the twelve subnets are measured again and again, one after the other, for `--minutes` per runtime and mode:
with the machine as it is, and while another process streams memory for 5 s and rests for 5 s. Per subnet, the scatter
of latency at undisturbed speed is its median absolute deviation, and its range that from the 5 to the 95 % quantile;
both are given as the mean over the subnets. The range is compared with that of the plain median in the same
measurements.

Verification: the same with the protocol of a verification, and a new measuring child for each round through the
subnets. What all subnets of a child have in common is the bias of its references.

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import math
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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bare_loop import RUNTIMES, SPACE, Agreement, agreement, executed
from figures import Figures, parser
from rigs.brokers import mosquitto
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import MeasuredReply, MeasureOrder, ReferenceOrder
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.service.service import KEEP_CHILD_S
from fleetnas.agent.service.speed_tracker import SpeedTracker
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle

PARTS = ("agreement", "scatter", "verification", "idle")
PROTOCOL = MeasurementProtocol()
#: Values of a subnet that tell its scatter, at least.
LEAST_ROUNDS = 3
VERIFICATION = MeasurementProtocol(half_width_percent=1.0, sessions=3)
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


@dataclass(frozen=True)
class Repeats:
    """Measurements of the subnets in turn; the index of the subnet beside each reply."""

    replies: list[tuple[int, MeasuredReply]]
    seconds: float

    @property
    def rounds(self) -> list[list[MeasuredReply]]:
        """Replies of each complete round through the subnets."""
        count = 1 + max(index for index, _ in self.replies)
        return [
            [reply for _, reply in self.replies[begin : begin + count]]
            for begin in range(0, len(self.replies) - count + 1, count)
        ]

    def per_subnet(self, value: Callable[[MeasuredReply], float | None]) -> list[list[float]]:
        """What `value` finds, per subnet; subnets with fewer than `LEAST_ROUNDS` values are left out."""
        found: dict[int, list[float]] = {}
        for index, reply in self.replies:
            number = value(reply)
            if number is not None:
                found.setdefault(index, []).append(number)
        return [values for values in found.values() if len(values) >= LEAST_ROUNDS]


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


def repeats(
    bundle: SupernetBundle, runtime: str, seconds: float, protocol: MeasurementProtocol, *, new_children: bool = False
) -> Repeats:
    """Measure the twelve subnets in turn, as an agent does, for so long and at least `LEAST_ROUNDS` times each.

    Each round runs in a new child if asked for.
    """
    genomes = np.concatenate([SPACE.smallest(), SPACE.largest(), SPACE.sample(10, np.random.default_rng(5))])
    architectures = SPACE.decode(genomes)
    worker, speed = Worker(child_command(default_host_lock_path())), SpeedTracker()
    replies: list[tuple[int, MeasuredReply]] = []
    begin = time.perf_counter()
    try:
        for index in itertools.cycle(range(len(architectures))):
            done = len(replies) >= LEAST_ROUNDS * len(architectures) and time.perf_counter() - begin > seconds
            if index == 0 and done:
                break
            if index == 0 and new_children:
                worker.close()
            order = MeasureOrder(
                bundle_path=str(bundle.path),
                bundle_sha256=bundle.sha256,
                architecture=architectures[index],
                setting=RuntimeSetting.model_validate({"runtime": runtime}),
                protocol=protocol,
                references=ReferenceOrder(levels_ms=speed.levels(0), normals=speed.normals(0)),
            )
            reply = executed(worker, order)
            assert reply.paired is not None
            others = {name: level for name, level in reply.levels_ms.items() if name != reply.paired.reference}
            speed.learn_levels(0, others)
            speed.judge(0, reply.paired, throttled=None, now=time.monotonic(), ended_unix_s=time.time())
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
    for runtime in RUNTIMES:
        for mode, neighbour in (("as_is", nullcontext), ("streaming", streaming_neighbour)):
            with neighbour():
                found = repeats(bundle, runtime, 60 * minutes, PROTOCOL)
            figures_of(figures, found, f"{runtime}_{mode}")
            if mode == "as_is":
                shares(figures, found, runtime)


def verification(figures: Figures, bundle: SupernetBundle, minutes: float) -> None:
    for runtime in RUNTIMES:
        found = repeats(bundle, runtime, 60 * minutes, VERIFICATION, new_children=True)
        told = found.per_subnet(lambda reply: reply.paired.undisturbed_ms if reply.paired is not None else None)
        if not told:
            raise SystemExit(f"{len(found.replies)} verifications say nothing of scatter; raise --minutes")
        figures.add(f"scatter_verification_percent_{runtime}", statistics.mean(map(scatter_percent, told)), "<= 1.5")
        deviations = [100 * statistics.stdev(map(math.log, values)) for values in told]
        figures.add(f"deviation_verification_percent_{runtime}", statistics.mean(deviations))
        figures.add(f"bias_of_children_percent_{runtime}", shared_deviation_percent(found.rounds))
        figures.add(f"seconds_per_verification_{runtime}", found.seconds / len(found.replies))


def shared_deviation_percent(rounds: list[list[MeasuredReply]]) -> float:
    """Deviation of what all subnets of a round have in common: the bias of its child's references."""
    told = [
        [math.log(reply.paired.undisturbed_ms) for reply in replies if reply.paired and reply.paired.undisturbed_ms]
        for replies in rounds
    ]
    complete = np.array([values for values in told if len(values) == len(rounds[0])])
    if len(complete) < 2:
        return math.nan
    count, subnets = complete.shape
    means = complete.mean(axis=1)
    rest = complete - means[:, None] - complete.mean(axis=0) + complete.mean()
    within = float((rest**2).sum()) / ((count - 1) * (subnets - 1))
    return 100 * math.sqrt(max(0.0, float(means.var(ddof=1)) - within / subnets))


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
    arguments.add_argument("--subnets", type=int, default=12, help="of the agreement; two are smallest and largest")
    arguments.add_argument("--processes", type=int, default=3, help="of the agreement, per subnet, on either side")
    arguments.add_argument("--blocks", type=int, default=4, help="of the agreement, per pair of processes")
    arguments.add_argument("--minutes", type=float, default=10.0, help="per runtime and mode, at least")
    arguments.add_argument("--idle-seconds", type=float, default=60.0)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = arguments.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "ofa.supernet", SPACE, classes=1000, channels=3)
        if "agreement" in given.parts:
            agreement(figures, bundle, Agreement(given.subnets, given.processes, given.blocks))
        if "scatter" in given.parts:
            scatter(figures, bundle, given.minutes)
        if "verification" in given.parts:
            verification(figures, bundle, given.minutes)
    if "idle" in given.parts:
        idle_cost(figures, given.idle_seconds)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())

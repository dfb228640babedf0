"""Compare the agent's latencies with a bare loop's, over new sessions on both sides; `agent_measuring.py` runs it.

Blocks of four short turns: a bare loop, the agent twice, the bare loop. Each turn has a session of its own, and both
sides get a new process after some blocks, because sessions and processes differ.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import Figures
from session_variance import Change, Child, children
from variance_components import trimmed_mean

from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import BenchOrder, MeasuredReply, MeasureOrder, PhaseReply
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("ofa-mbv3")
RUNTIMES = ("onnxruntime", "litert")
#: Short turns, so that bare loop and agent see the same speed of a machine whose speed wanders.
TURN = MeasurementProtocol(warmup_s=0.1, min_s=0.2, min_runs=10, blocks=1, half_width_percent=1000.0)


@dataclass(frozen=True)
class Agreement:
    """Size of the comparison with a bare loop."""

    subnets: int
    #: On either side, per subnet, and blocks of each.
    processes: int
    blocks: int


def executed(worker: Worker, order: BenchOrder | MeasureOrder) -> MeasuredReply:
    worker.submit(order)
    while isinstance(reply := worker.poll(120), PhaseReply):
        continue
    if not isinstance(reply, MeasuredReply):
        raise SystemExit(f"the agent did not measure: {reply}")
    return reply


def bare_median_ms(bare: Child) -> float:
    """Median of a short turn of a bare loop over a fresh session."""
    bare.command(op="load")
    times_ms = np.array(bare.turn(TURN.warmup_s + TURN.min_s))
    bare.command(op="close")
    return float(np.median(times_ms[np.cumsum(times_ms) > 1000 * TURN.warmup_s]))


def log_ratios(model: Path, setting: RuntimeSetting, processes: int, blocks: int) -> list[float]:
    """Logarithm of the agent's latency over the bare loop's, per block."""
    order = BenchOrder(model_path=str(model), setting=setting, protocol=TURN)
    found = []
    for _ in range(processes):
        worker = Worker(child_command(default_host_lock_path()))
        try:
            with children(1, model, setting.runtime, Change(), "wall") as (bare,):
                executed(worker, order)  # both processes import their libraries
                bare_median_ms(bare)
                for _ in range(blocks):
                    before = bare_median_ms(bare)
                    ours = [executed(worker, order).timing.median_ms for _ in range(2)]
                    found.append(math.log(ours[0] * ours[1] / (before * bare_median_ms(bare))) / 2)
        finally:
            worker.close()
    return found


def agreement(figures: Figures, bundle: SupernetBundle, size: Agreement) -> None:
    genomes = np.concatenate([SPACE.smallest(), SPACE.largest(), SPACE.sample(10, np.random.default_rng(0))])
    for runtime in RUNTIMES:
        setting = RuntimeSetting.model_validate({"runtime": runtime})
        found = []
        for architecture in SPACE.decode(genomes)[: size.subnets]:
            with tempfile.TemporaryDirectory() as folder:
                model = Path(folder, "model.onnx" if runtime == "onnxruntime" else "model.tflite")
                model.write_bytes(build_model(bundle, architecture, None, setting))
                found.append(trimmed_mean(log_ratios(model, setting, size.processes, size.blocks)))
        ratios, widths = np.exp([mean for mean, _ in found]), np.array([width for _, width in found])
        drawn = np.random.default_rng(1).choice(ratios, (4000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        worst = int(np.argmax(np.abs(ratios - 1)))
        name = f"difference_from_bare_loop_percent_{runtime}"
        figures.add(name, 100 * abs(float(np.median(ratios)) - 1), "<= 1.0")
        figures.add(f"{name}_half_width", 50 * float(high - low))
        figures.add(f"worst_{name}", 100 * float(abs(ratios[worst] - 1)), "<= 2.0")
        figures.add(f"worst_{name}_half_width", 100 * float(widths[worst]))
        for index, (ratio, width) in enumerate(zip(ratios, widths, strict=True)):
            figures.add(f"ratio_to_bare_loop_{runtime}_{index}", float(ratio))
            figures.add(f"ratio_to_bare_loop_{runtime}_{index}_half_width_percent", 100 * float(width))

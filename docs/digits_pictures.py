"""Measure the built-in supernet's subnets on this machine, draw `docs/img/digits_accuracy.png`, print the table.

`python docs/digits_pictures.py [--subnets N]`: latency is the median of onnxruntime runs with one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.calibration.subnet import SliceSubnet
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.digits.accuracy import load_evaluated
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.evaluation.subnets import calibrated_graph, evaluate_subnet
from fleetnas.supernet_export.export import DIGITS_CHECKPOINT, export_state_dict
from fleetnas.supernet_export.graph import INPUT
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.digits import DigitsSpace

PICTURE = Path(__file__).resolve().parent / "img" / "digits_accuracy.png"
SPACE = DigitsSpace()


def slice_shipped() -> SliceSubnet:
    """Slices the checkpoint that ships."""
    tensors = export_state_dict(read_checkpoint(DIGITS_CHECKPOINT).tensors, SPACE)
    slicer = slicer_for(SPACE)
    return lambda architecture, statistics: slicer.slice(tensors.__getitem__, architecture, statistics)


def latency_ms(slice_subnet: SliceSubnet, architecture: Architecture, images: PreparedImages) -> float:
    """Median of 0.15 s of runs, after as many to warm up as fit into 0.05 s."""
    graph, _ = calibrated_graph(slice_subnet, architecture, images)
    session = open_session(emit_onnx(graph))
    image = {INPUT: images.evaluation(architecture.r)[:1]}
    times: list[float] = []
    started = time.perf_counter()
    while (now := time.perf_counter()) < started + 0.2:
        session.run(None, image)
        if now > started + 0.05:
            times.append(1e3 * (time.perf_counter() - now))
    return float(np.median(times))


def extremes() -> list[tuple[str, Architecture]]:
    """The smallest, the middle and the largest subnet at every resolution."""
    found = []
    middle = SPACE.canonical(((SPACE.cardinalities - 1) // 2)[None, :].astype(np.int16))
    for name, genome in (("smallest", SPACE.smallest()), ("middle", middle), ("largest", SPACE.largest())):
        for index in range(len(SPACE.resolutions)):
            chosen = genome.copy()
            chosen[:, 0] = index
            found.append((name, SPACE.decode(chosen)[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnets", type=int, default=200, help="how many of the evaluated subnets to measure")
    options = parser.parse_args()
    slice_subnet, images = slice_shipped(), PreparedImages(DigitsImages("calibration"), DigitsImages("test"))

    print("| subnet | resolution | MACs (million) | latency (ms) | test accuracy (%) |\n|---|---|---|---|---|")
    for name, architecture in extremes():
        macs = SPACE.macs(SPACE.encode([architecture]))[0] / 1e6
        accuracy = 100 * evaluate_subnet(slice_subnet, architecture, images).accuracy
        latency = latency_ms(slice_subnet, architecture, images)
        print(f"| {name} | {architecture.r} | {macs:.2f} | {latency:.3f} | {accuracy:.1f} |", flush=True)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    evaluated = load_evaluated()
    chosen = evaluated[:: max(1, len(evaluated) // options.subnets)]
    measured = [latency_ms(slice_subnet, subnet.architecture, images) for subnet in chosen]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, subnets, across, ticks, label in (
        (left, evaluated, [subnet.macs / 1e6 for subnet in evaluated], (0.5, 1, 2, 5, 10, 20), "million MACs"),
        (right, chosen, measured, (0.05, 0.1, 0.2, 0.5, 1), "latency in ms: onnxruntime, one thread"),
    ):
        points = axis.scatter(
            across,
            [100 * subnet.accuracy for subnet in subnets],
            c=[SPACE.resolutions.index(subnet.architecture.r) for subnet in subnets],
            cmap="viridis",
            s=12,
        )
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    left.set_ylabel("accuracy on the 600 test digits, %")
    handles, _ = points.legend_elements()
    right.legend(handles, [f"{side} px" for side in SPACE.resolutions], title="resolution", loc="lower right")
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"{len(chosen)} subnets measured: {min(measured):.3f} to {max(measured):.3f} ms; {PICTURE}")


if __name__ == "__main__":
    main()

"""How much faster are many subnets evaluated together, and what do a second Dask worker and a killed worker change?

- *speedup_over_single_processes*: seconds per subnet of one `fleetnas evaluate` process after the other, over those of
  one `fleetnas accuracy evaluate` with a worker per core, its start included.
- *speedup_with_few_calibration_images*: the same with `--calibration-count 400`.
- *two_dask_workers_speedup*: seconds of an evaluation on one Dask worker over those on two, from the first line on.
- *killed_worker_lost*: subnets without figures after a worker process was killed with SIGKILL in the middle.

By default on a supernet with random weights and images of noise, 8 classes, made in a temporary folder; `--bundle`,
`--images` and `--calibration-images` take real ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import Figures, parser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rigs import evaluations, supernets, waiting

from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.evaluation.sampling import draw_subnets
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.spaces.registry import make_space

CLASSES, TRAIN, VAL = 8, 240, 60
FEW = 400
_FLEETNAS = "from fleetnas.coordinator.cli import main; main()"


@dataclass(frozen=True)
class Data:
    """A bundle with the options that name its images."""

    bundle: Path
    images: Path
    calibration_images: Path

    @property
    def options(self) -> list[str]:
        return ["--images", str(self.images), "--calibration-images", str(self.calibration_images)]


def make_data(folder: Path) -> Data:
    """A random supernet of the space `mbconv`, and as many images as the textures have: 64 x 48 pixels, RGB, PNG."""
    from PIL import Image

    space = make_space("mbconv", {"classes": CLASSES, "resolutions": [32, 40, 48]})
    manifest = supernets.random_manifest(space, CLASSES, 3)
    write_bundle(folder / "random.supernet", manifest, export_state_dict(supernets.random_state_dict(space), space))
    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
                small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / part / str(label) / f"{number}.png")
    return Data(folder / "random.supernet", folder / "val", folder / "train")


def single_processes_s(data: Data, count: int, *options: str) -> float:
    """Seconds per subnet of one process for each of the first subnets of the list."""
    subnets = draw_subnets(SupernetBundle.open(data.bundle).space, count, "both", 0)
    began_s = time.perf_counter()
    for subnet in subnets:
        words = ["evaluate", data.bundle, subnet.architecture.model_dump_json(), *data.options, *options]
        run = waiting.run([sys.executable, "-c", _FLEETNAS, *words])
        assert run.returncode == 0, run.stderr
    return (time.perf_counter() - began_s) / count


def together_s(data: Data, count: int, output: Path, *options: str) -> float:
    """Seconds per subnet of one evaluation of many, its start included."""
    began_s = time.perf_counter()
    evaluations.finish(evaluations.start(data.bundle, output, *data.options, "-n", count, *options))
    return (time.perf_counter() - began_s) / count


def dask_s(data: Data, count: int, workers: int, folder: Path) -> float:
    """Seconds per subnet of an evaluation on Dask workers, from its first line to its last."""
    output = folder / f"dask-{workers}.jsonl"
    (folder / f"{workers}").mkdir()
    with evaluations.dask_cluster(folder / f"{workers}", workers) as cluster:
        process = evaluations.start(data.bundle, output, *data.options, "-n", count, "--scheduler", cluster.address)
        try:
            first = waiting.until(lambda: len(evaluations.lines(output)), process, *cluster.nannies, output)
            began_s = time.perf_counter()
            evaluations.finish(process)
            return (time.perf_counter() - began_s) / (count - first)
        finally:
            evaluations.end(process)


def lost_subnets(data: Data, count: int, output: Path) -> int:
    """Subnets without figures after one of two workers was killed."""
    process = evaluations.start(data.bundle, output, *data.options, "-n", count, "--workers", "2")
    try:
        waiting.until(lambda: len(evaluations.lines(output)) >= count // 3, process, output)
        waiting.until(lambda: evaluations.workers(process), process)[0].kill()
        waiting.outputs(process)
    finally:
        evaluations.end(process)
    return count - sum("accuracy" in line for line in evaluations.lines(output))


def add_figures(figures: Figures, data: Data, folder: Path, *, single: int, many: int, dask: int) -> None:
    """Measure everything on the given numbers of subnets, and add the figures."""
    alone_s = single_processes_s(data, single)
    all_s = together_s(data, many, folder / "all.jsonl")
    few_s = together_s(data, many, folder / "few.jsonl", "--calibration-count", str(FEW))
    figures.add("seconds_per_subnet_alone", alone_s)
    figures.add("seconds_per_subnet_together", all_s)
    figures.add("seconds_per_subnet_with_few_calibration_images", few_s)
    figures.add("speedup_over_single_processes", alone_s / all_s, ">= 10")
    figures.add("speedup_with_few_calibration_images", alone_s / few_s)
    one_s, two_s = (dask_s(data, dask, workers, folder) for workers in (1, 2))
    figures.add("two_dask_workers_speedup", one_s / two_s, ">= 1.7")
    figures.add("killed_worker_lost", lost_subnets(data, max(12, dask // 4), folder / "killed.jsonl"), "== 0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; the exit status is 0 if all bars are met."""
    options = parser(__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--bundle", type=Path, help="a .supernet file, in place of a random one")
    options.add_argument("--images", type=Path, help="images to evaluate on")
    options.add_argument("--calibration-images", type=Path, help="images to calibrate on")
    options.add_argument("--single", type=int, default=5, help="subnets evaluated by a process each")
    options.add_argument("--many", type=int, default=100, help="subnets evaluated together")
    options.add_argument("--dask", type=int, default=40, help="subnets evaluated on one and on two Dask workers")
    chosen = options.parse_args(arguments)
    given = (chosen.bundle, chosen.images, chosen.calibration_images)
    if any(given) and not all(given):
        options.error("give all of --bundle, --images and --calibration-images, or none")
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        data = Data(*given) if all(given) else make_data(Path(folder))
        add_figures(figures, data, Path(folder), single=chosen.single, many=chosen.many, dask=chosen.dask)
    return figures.report(as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())

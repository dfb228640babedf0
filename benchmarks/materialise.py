"""From an architecture to a runnable onnxruntime session: ours against the peer's, in time and in memory.

The peer's way is `set_active_subnet`, `get_active_subnet(preserve_weight=True)`, `torch.onnx.export` and a session.
Both work on the same OFA-MobileNetV3 supernet with random weights, one thread each, taking turns architecture by
architecture. Needs torch and the `ofa` package.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.interpreters.onnxruntime import open_session
from fleetnas.supernet_export.slicing.subnet import slice_subnet

FAMILY = "ofa-mbv3-w1.0"


def ours(bundle: SupernetBundle, architecture: Architecture) -> tuple[float, float]:
    """Seconds to slice and emit, and to load."""
    started = time.perf_counter()
    model = emit_onnx(slice_subnet(bundle, architecture))
    built = time.perf_counter()
    open_session(model)
    return built - started, time.perf_counter() - built


def peers(net: Any, architecture: Architecture) -> float:
    """Seconds of the peer's way."""
    import torch
    from rigs.peer_supernets import peer_subnet

    started = time.perf_counter()
    subnet = peer_subnet(net, architecture)
    buffer = io.BytesIO()
    image = torch.zeros(1, 3, architecture.r, architecture.r)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(subnet, (image,), buffer, dynamo=False)
    open_session(buffer.getvalue())
    return time.perf_counter() - started


def measure_memory(path: Path) -> tuple[float, float]:
    """Of the largest subnet: peak of allocated memory over its weights, and growth of the resident set in bytes
    beyond the mapped bundle, over its weights. Run in a process of its own."""
    bundle = SupernetBundle.open(path)
    smallest, largest = bundle.space.decode(np.concatenate([bundle.space.smallest(), bundle.space.largest()]))
    emit_onnx(slice_subnet(bundle, smallest))
    weights = slice_subnet(bundle, largest).weight_bytes
    before = _peak_resident_bytes()
    emit_onnx(slice_subnet(bundle, largest))
    grown = _peak_resident_bytes() - before
    tracemalloc.start()
    model = emit_onnx(slice_subnet(bundle, largest))
    _, peak = tracemalloc.get_traced_memory()
    assert len(model) >= weights
    return peak / weights, (grown - bundle.size) / weights


def _peak_resident_bytes() -> int:
    """The process's own high-water mark (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this kernel does not tell VmHWM")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--subnets", type=int, default=25, help="random architectures to time")
    arguments.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.memory_of is not None:
        print(*measure_memory(given.memory_of))
        return 0

    import torch
    from rigs.peer_supernets import FAMILIES, peer_supernet, save_checkpoint

    from fleetnas.supernet_export.export import export_checkpoint
    from fleetnas.supernet_export.spaces.registry import make_space

    torch.set_num_threads(1)
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        net = peer_supernet(FAMILY)
        _, _, name, options = FAMILIES[FAMILY]
        path = Path(folder) / "peer.supernet"
        export_checkpoint(save_checkpoint(net, Path(folder) / "checkpoint.pth"), make_space(name, options), path)
        bundle = SupernetBundle.open(path)
        genomes = bundle.space.sample(given.subnets + 1, np.random.default_rng(0))
        warm_up, *architectures = bundle.space.decode(genomes)
        ours(bundle, warm_up)
        peers(net, warm_up)
        # What torch's import left behind is no work of either side: keep the collector from walking it.
        gc.collect()
        gc.freeze()
        rows = [(*ours(bundle, architecture), peers(net, architecture)) for architecture in architectures]
        child = [sys.executable, __file__, "--memory-of", str(path)]
        allocated, resident = map(
            float, subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()
        )

    figures.add("ours_build_ms_median", 1e3 * statistics.median(build for build, _, _ in rows))
    figures.add("ours_load_ms_median", 1e3 * statistics.median(load for _, load, _ in rows))
    figures.add("peers_total_ms_median", 1e3 * statistics.median(total for _, _, total in rows))
    figures.add("speedup_median", statistics.median(peer / (build + load) for build, load, peer in rows), ">= 10")
    figures.add("build_over_load_median", statistics.median(build / load for build, load, _ in rows), "< 1")
    figures.add("peak_allocated_over_weights", allocated, "<= 2")
    figures.add("peak_resident_beyond_bundle_over_weights", resident, "<= 2")
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

"""Largest difference between our subnets and the peer's, per family: the smallest, the largest and random ones.

The peer writes a checkpoint with random weights; its subnet is `set_active_subnet` and
`get_active_subnet(preserve_weight=True)`, ours are the ONNX file in onnxruntime and the TFLite file in LiteRT.
Differences are of the logits, over their range. Needs torch and the `ofa` package.

With `--tflite-runtime PYTHON` it compares interpreters instead: the float32 and int8 TFLite files of a dozen subnets
per family, in ai-edge-litert here and in the interpreter that the other Python has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from peer_supernets import FAMILIES, peer_logits, peer_subnet, peer_supernet, save_checkpoint

from supernet_export.activation_ranges import observe_ranges
from supernet_export.bundle import SupernetBundle
from supernet_export.calibration import estimate_statistics
from supernet_export.evaluation import open_classifier
from supernet_export.export import export_checkpoint
from supernet_export.graph import Array
from supernet_export.onnx_emitter import emit_onnx
from supernet_export.spaces.registry import make_space
from supernet_export.subnet import slice_subnet
from supernet_export.tflite_emitter import emit_tflite

RUNNER = Path(__file__).with_name("tflite_runner.py")


def over_range(found: Array, wanted: Array) -> float:
    """Largest difference of a logit over the range of the logits."""
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


def largest_differences(family: str, subnets: int, resolutions: list[int]) -> dict[str, float]:
    """Of the ONNX and of the TFLite files from the peer's logits, over all subnets and resolutions."""
    net = peer_supernet(family)
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(("onnx", "tflite"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        bundle = peer_bundle(net, family, Path(folder))
        space = bundle.space
        genomes = np.concatenate([space.smallest(), space.largest(), space.sample(subnets, rng)])
        for architecture in space.decode(genomes):
            theirs = peer_subnet(net, architecture)
            for resolution in resolutions:
                graph = slice_subnet(bundle, architecture.model_copy(update={"r": resolution}))
                image = rng.standard_normal(graph.input_shape, dtype=np.float32)
                expected = peer_logits(theirs, image[None])[0]
                for name, emit in (("onnx", emit_onnx), ("tflite", emit_tflite)):
                    worst[name] = max(worst[name], over_range(open_classifier(emit(graph))(image), expected))
    return worst


def differences_of_interpreters(python: Path, family: str, subnets: int, resolution: int) -> dict[str, list[float]]:
    """For float32 and int8, each subnet's logits in the other Python's interpreter against ai-edge-litert's: largest
    difference over the range. Subnets are calibrated, so that int8 has the ranges that trained networks have."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"fp32": [], "int8": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = peer_bundle(peer_supernet(family), family, folder)
        space = bundle.space
        expected: dict[Path, Array] = {}
        genomes = np.concatenate([space.smallest(), space.largest(), space.sample(subnets - 2, rng)])
        for index, chosen in enumerate(space.decode(genomes)):
            architecture = chosen.model_copy(update={"r": resolution})
            raw = slice_subnet(bundle, architecture)
            batch = rng.standard_normal((8, *raw.input_shape), dtype=np.float32)
            graph = slice_subnet(bundle, architecture, estimate_statistics(raw, [batch]))
            for precision, ranges in (("fp32", None), ("int8", observe_ranges(graph, [batch]))):
                path = folder / f"{precision}.{index}.tflite"
                path.write_bytes(emit_tflite(graph, ranges=ranges))
                np.save(path.with_suffix(".input.npy"), batch[:1].transpose(0, 2, 3, 1))
                expected[path] = open_classifier(path.read_bytes())(batch[0])
        subprocess.run([python, RUNNER, folder], check=True, stderr=subprocess.PIPE)
        for path, wanted in expected.items():
            (logits,) = np.load(path.with_suffix(".output.npy"))
            found[path.name.partition(".")[0]].append(over_range(logits, wanted))
    return found


def peer_bundle(net: object, family: str, folder: Path) -> SupernetBundle:
    """Our bundle of the peer's supernet."""
    _, _, name, options = FAMILIES[family]
    path = folder / "peer.supernet"
    export_checkpoint(save_checkpoint(net, folder / "checkpoint.pth"), make_space(name, options), path)
    return SupernetBundle.open(path)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--subnets", type=int, help="random architectures per family (100; 12 between interpreters)")
    arguments.add_argument("--resolutions", type=int, nargs="+", default=[128, 176, 224])
    arguments.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    arguments.add_argument("--tflite-runtime", type=Path, metavar="PYTHON", help="a Python that has tflite-runtime")
    given = arguments.parse_args()
    figures = Figures()
    for family in given.families:
        if given.tflite_runtime is None:
            for name, worst in largest_differences(family, given.subnets or 100, given.resolutions).items():
                figures.add(f"{family}_{name}_largest_difference_over_range", worst, "<= 1e-4")
            continue
        found = differences_of_interpreters(given.tflite_runtime, family, given.subnets or 12, given.resolutions[0])
        figures.add(f"{family}_fp32_interpreters_largest_difference_over_range", max(found["fp32"]), "<= 1e-4")
        figures.add(f"{family}_int8_interpreters_median_difference_over_range", float(np.median(found["int8"])))
        figures.add(f"{family}_int8_interpreters_largest_difference_over_range", max(found["int8"]))
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

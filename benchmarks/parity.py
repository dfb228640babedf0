"""Largest difference between our subnets and the peer's, per family: the smallest, the largest and random ones.

The peer writes a checkpoint with random weights; its subnet is `set_active_subnet` and
`get_active_subnet(preserve_weight=True)`, ours are the ONNX file in onnxruntime and the TFLite file in LiteRT.
Each subnet is calibrated by the peer on images as smooth and as unlike as photographs; what is told is the larger of
the largest difference of a logit over the logits' range, and of the difference between images over its own range.
Needs torch and the `ofa` package. Random subnets are compared at one resolution each, in turn, as a comparison costs
some seconds; `--every-resolution` compares each at all. Standard error tells how far it is.

With `--tflite-runtime PYTHON` it compares interpreters instead: the float32 and int8 TFLite files of a dozen subnets
per family and of the trained digits, in ai-edge-litert here and in the interpreter that the other Python has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.logit_parity import KINDS, disagreement, layers_of, perturbed
from rigs.peer_supernets import FAMILIES, compared, kernels_of, peer_supernet, save_checkpoint

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.evaluation.classifier import open_classifier
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.export import export_checkpoint, export_digits
from fleetnas.supernet_export.graph import Array, Graph
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.registry import make_space

ImagePair: TypeAlias = tuple[Array, Array]
Labels: TypeAlias = NDArray[np.int64]

RUNNER = Path(__file__).with_name("tflite_runner.py")


def over_range(found: Array, wanted: Array) -> float:
    """Largest difference of a logit over the range of the logits."""
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


def progress(family: str, done: int, total: int, began_s: float) -> None:
    """Tell, every tenth of the way, how far a family is."""
    if done == total or done % max(1, total // 10) == 0:
        print(f"{family}: {done} of {total} comparisons in {time.monotonic() - began_s:.0f} s", file=sys.stderr)


def differences(
    family: str, subnets: int, resolutions: list[int], *, every: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Of the ONNX and of the TFLite files from the peer's logits: the largest over all subnets and resolutions; and
    the smallest once one layer of the largest subnet is three percent off, over its kinds of layers.

    The largest and the smallest subnet are compared at all resolutions, and with `every` the random ones too."""
    net = peer_supernet(family)
    rng = np.random.default_rng(0)
    emitters: dict[str, Callable[[Graph], bytes]] = {"onnx": emit_onnx, "tflite": emit_tflite}
    largest, found = dict.fromkeys(emitters, 0.0), dict.fromkeys(emitters, np.inf)
    with tempfile.TemporaryDirectory() as folder:
        bundle = peer_bundle(net, family, Path(folder))
        space = bundle.space
        genomes = np.concatenate([space.largest(), space.smallest(), space.sample(subnets, rng)])
        done, total = 0, (len(genomes) if every else 2) * len(resolutions) + (0 if every else subnets)
        began_s = time.monotonic()
        for index, architecture in enumerate(space.decode(genomes)):
            at = resolutions if every or index < 2 else [resolutions[index % len(resolutions)]]
            for resolution in at:
                pair = compared(net, bundle, architecture.model_copy(update={"r": resolution}), rng)
                for name, emit in emitters.items():
                    logits = logits_of(emit(pair.graph), pair.images)
                    largest[name] = max(largest[name], disagreement(logits, pair.expected))
                done += 1
                progress(family, done, total, began_s)
            for layer in [name for kind in KINDS for name in layers_of(pair.graph, kind)[:1]] if index == 0 else []:
                for name, emit in emitters.items():
                    logits = logits_of(emit(perturbed(pair.graph, layer, rng)), pair.images)
                    found[name] = min(found[name], disagreement(logits, pair.expected))
    return largest, found


@dataclass(frozen=True)
class Interpreted:
    """One calibrated subnet's logits (n, classes) on n images: of float32 ONNX, and by precision of the TFLite files in
    ai-edge-litert and in the other interpreter."""

    floats: Array
    here: Mapping[str, Array]
    there: Mapping[str, Array]

    def error(self, logits: Array) -> float:
        """Root mean square of the difference from float32 over float32's deviation."""
        return float(np.sqrt(np.mean((logits - self.floats) ** 2)) / self.floats.std())


def run_in_both(
    python: Path, bundle: SupernetBundle, architectures: Iterable[Architecture], images: Callable[[int], ImagePair]
) -> list[Interpreted]:
    """Each subnet calibrated on the first and run on the second of `images(resolution)`, both (n, c, h, w)."""
    subnets: list[tuple[Array, dict[str, Array]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, architecture in enumerate(architectures):
            calibration, shown = images(architecture.r)
            raw = slice_subnet(bundle, architecture)
            graph = slice_subnet(bundle, architecture, estimate_statistics(raw, [calibration]))
            here = {}
            for precision, ranges in (("fp32", None), ("int8", observe_ranges(graph, [calibration]))):
                path = folder / f"{index}.{precision}.tflite"
                path.write_bytes(emit_tflite(graph, ranges=ranges))
                np.save(path.with_suffix(".input.npy"), shown.transpose(0, 2, 3, 1))
                here[precision] = logits_of(path.read_bytes(), shown)
            subnets.append((logits_of(emit_onnx(graph), shown), here))
        subprocess.run([python, RUNNER, folder], check=True, stderr=subprocess.PIPE)
        return [
            Interpreted(floats, here, {name: np.load(folder / f"{index}.{name}.output.npy") for name in here})
            for index, (floats, here) in enumerate(subnets)
        ]


def logits_of(model: bytes, images: Array) -> Array:
    """Logits (n, classes) of a model of batch 1."""
    classify = open_classifier(model)
    return np.stack([classify(image) for image in images])


def compare_interpreters(figures: Figures, name: str, subnets: list[Interpreted]) -> None:
    """Float32 must be equal. Int8 kernels round each in their own way, and an untrained network blows that up: what
    counts is that the other interpreter is no farther from float32 than ai-edge-litert is."""
    worst = max(over_range(subnet.there["fp32"], subnet.here["fp32"]) for subnet in subnets)
    figures.add(f"{name}_fp32_largest_difference_over_range", worst, "<= 1e-4")
    here, there = ([subnet.error(getattr(subnet, side)["int8"]) for subnet in subnets] for side in ("here", "there"))
    figures.add(f"{name}_int8_error_litert_median", float(np.median(here)))
    figures.add(f"{name}_int8_error_tflite_runtime_median", float(np.median(there)))
    figures.add(f"{name}_int8_error_ratio_median", float(np.median(np.divide(there, here))), "<= 1.25")


def interpreters_on_peers(python: Path, family: str, subnets: int, resolution: int) -> list[Interpreted]:
    """Subnets of the peer's supernet, on noise."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((8, 3, resolution, resolution), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bundle = peer_bundle(peer_supernet(family), family, Path(folder))
        space = bundle.space
        genomes = np.concatenate([space.smallest(), space.largest(), space.sample(subnets - 2, rng)])
        chosen = [architecture.model_copy(update={"r": resolution}) for architecture in space.decode(genomes)]
        return run_in_both(python, bundle, chosen, lambda _: (noise, noise))


def interpreters_on_digits(python: Path, subnets: int) -> tuple[list[Interpreted], Labels]:
    """Subnets of the trained digits supernet on the test digits, and what these are."""
    test = DigitsImages("test")

    def images(resolution: int) -> ImagePair:
        calibration, shown = (
            np.stack(list(source.images(resolution))) for source in (DigitsImages("calibration"), test)
        )
        return calibration, shown

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.supernet"
        export_digits(path)
        bundle = SupernetBundle.open(path)
        space = bundle.space
        rng = np.random.default_rng(0)
        genomes = np.concatenate([space.smallest(), space.largest(), space.sample(subnets - 2, rng)])
        return run_in_both(python, bundle, space.decode(genomes), images), np.array(test.labels)


def peer_bundle(net: object, family: str, folder: Path) -> SupernetBundle:
    """Our bundle of the peer's supernet."""
    _, _, name, options = FAMILIES[family]
    path = folder / "peer.supernet"
    export_checkpoint(save_checkpoint(net, folder / "checkpoint.pth"), make_space(name, options), path)
    return SupernetBundle.open(path)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--subnets", type=int, help="random architectures per family (100); subnets in all (12) between interpreters"
    )
    arguments.add_argument("--resolutions", type=int, nargs="+", default=[128, 176, 224])
    arguments.add_argument("--every-resolution", action="store_true", help="compare random subnets at all of them")
    arguments.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    arguments.add_argument("--tflite-runtime", type=Path, metavar="PYTHON", help="a Python that has tflite-runtime")
    given = arguments.parse_args()
    figures = Figures()
    if given.tflite_runtime is None:
        for family in given.families:
            with kernels_of(family):
                largest, found = differences(
                    family, given.subnets or 100, given.resolutions, every=given.every_resolution
                )
            for name, worst in largest.items():
                figures.add(f"{family}_{name}_largest_difference", worst, "<= 1e-4")
                figures.add(f"{family}_{name}_difference_of_a_layer_3_percent_off", found[name], ">= 1e-3")
        return figures.report(as_json=given.json)
    python, subnets = given.tflite_runtime, given.subnets or 12
    digits, labels = interpreters_on_digits(python, subnets)
    compare_interpreters(figures, "digits", digits)
    for precision in ("fp32", "int8"):
        apart = [
            100 * abs(np.mean(subnet.there[precision].argmax(1) == labels) - np.mean(subnet.floats.argmax(1) == labels))
            for subnet in digits
        ]
        bar = "<= 0.2" if precision == "fp32" else "<= 1.5"
        figures.add(f"digits_{precision}_tflite_runtime_accuracy_apart_points", float(max(apart)), bar)
    for family in given.families:
        with kernels_of(family):
            interpreted = interpreters_on_peers(python, family, subnets, given.resolutions[0])
        compare_interpreters(figures, family, interpreted)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

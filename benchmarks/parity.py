"""Largest difference between our subnets and the peer's, per family: the smallest, the largest and random ones.

The peer writes a checkpoint with random weights; its subnet is `set_active_subnet` and
`get_active_subnet(preserve_weight=True)`, ours is the ONNX file in onnxruntime. Differences are of the logits, over
their range. Needs torch and the `ofa` package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from peer_supernets import FAMILIES, peer_logits, peer_subnet, peer_supernet, save_checkpoint

from supernet_export.bundle import SupernetBundle
from supernet_export.export import export_checkpoint
from supernet_export.graph import INPUT, OUTPUT
from supernet_export.onnx_emitter import emit_onnx
from supernet_export.session import open_session
from supernet_export.spaces.registry import make_space
from supernet_export.subnet import slice_subnet


def largest_difference(family: str, subnets: int, resolutions: list[int]) -> float:
    """Over all subnets and resolutions, the largest difference of a logit over the range of its image's logits."""
    net = peer_supernet(family)
    _, _, name, options = FAMILIES[family]
    space = make_space(name, options)
    rng = np.random.default_rng(0)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.supernet"
        export_checkpoint(save_checkpoint(net, Path(folder) / "checkpoint.pth"), space, path)
        bundle = SupernetBundle.open(path)
        genomes = np.concatenate([space.smallest(), space.largest(), space.sample(subnets, rng)])
        for architecture in space.decode(genomes):
            theirs = peer_subnet(net, architecture)
            for resolution in resolutions:
                graph = slice_subnet(bundle, architecture.model_copy(update={"r": resolution}))
                image = rng.standard_normal((1, *graph.input_shape), dtype=np.float32)
                expected = peer_logits(theirs, image)
                (found,) = open_session(emit_onnx(graph)).run([OUTPUT], {INPUT: image})
                worst = max(worst, float(np.abs(found - expected).max() / np.ptp(expected)))
    return worst


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--subnets", type=int, default=100, help="random architectures per family")
    arguments.add_argument("--resolutions", type=int, nargs="+", default=[128, 176, 224])
    arguments.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    given = arguments.parse_args()
    figures = Figures()
    for family in given.families:
        difference = largest_difference(family, given.subnets, given.resolutions)
        figures.add(f"{family}_largest_difference_over_range", difference, "<= 1e-4")
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

"""Read and write the accuracy files of `digits`: the evaluated subnets, and the predictor that was fitted on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor, HeldOut

EVALUATED_PATH = Path(__file__).with_name("accuracy.csv")
PREDICTOR_PATH = Path(__file__).with_name("accuracy.safetensors")
_HELD_OUT_KEY = "held_out"


@dataclass(frozen=True)
class EvaluatedSubnet:
    """A subnet that was sliced, batch-norm-calibrated on the calibration part and run on the test part."""

    architecture: Architecture
    #: Drawn `uniform` over the space, or `spread` evenly from the smallest to the largest subnets.
    drawn: str
    #: Whether the predictor was fitted on it (0) or its error measured on it (1).
    held_out: int
    #: Multiply-accumulates of one image.
    macs: int
    #: Top-1 on the test part, a fraction, and mean cross-entropy there, in nats.
    accuracy: float
    cross_entropy: float


def save_evaluated(path: Path, subnets: Sequence[EvaluatedSubnet]) -> None:
    """Write one row per subnet; the architecture is JSON in OFA's keys."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(EvaluatedSubnet)], lineterminator="\n")
        writer.writeheader()
        for subnet in subnets:
            row = asdict(subnet) | {
                "architecture": subnet.architecture.model_dump_json(),
                "accuracy": f"{subnet.accuracy:.6f}",
                "cross_entropy": f"{subnet.cross_entropy:.6f}",
            }
            writer.writerow(row)


def load_evaluated(path: Path = EVALUATED_PATH) -> list[EvaluatedSubnet]:
    """Read a file of `save_evaluated`; by default the subnets that ship."""
    with path.open(newline="") as file:
        return [
            EvaluatedSubnet(
                architecture=Architecture.model_validate_json(row["architecture"]),
                drawn=row["drawn"],
                held_out=int(row["held_out"]),
                macs=int(row["macs"]),
                accuracy=float(row["accuracy"]),
                cross_entropy=float(row["cross_entropy"]),
            )
            for row in csv.DictReader(file)
        ]


def save_predictor(path: Path, predictor: AccuracyPredictor) -> None:
    """Write the predictor as safetensors, its held-out error in the metadata."""
    from safetensors.numpy import save

    assert predictor.held_out is not None
    tensors = {name: np.ascontiguousarray(array) for name, array in predictor.tensors().items()}
    path.write_bytes(save(tensors, metadata={_HELD_OUT_KEY: json.dumps(predictor.held_out.to_json())}))


def load_predictor(path: Path = PREDICTOR_PATH) -> AccuracyPredictor:
    """Read a file of `save_predictor`; by default the predictor that ships."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        held_out = HeldOut(**json.loads(file.metadata()[_HELD_OUT_KEY]))
        names = file.keys()
        return AccuracyPredictor.from_tensors({name: file.get_tensor(name) for name in names}, held_out)

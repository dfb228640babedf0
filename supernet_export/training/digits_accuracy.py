"""Evaluate subnets of the built-in supernet, and fit its accuracy predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fleetnas.supernet_export.accuracy.errors import held_out_error
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.accuracy.networks import NetworkSettings, fit_networks
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.digits.accuracy import EvaluatedSubnet
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.evaluation.sampling import stratified_genomes
from fleetnas.supernet_export.evaluation.subnets import evaluate_subnet
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.digits import DigitsSpace

#: Subnets drawn uniformly, and spread from the smallest to the largest; one in four of each is held out.
UNIFORM_COUNT, SPREAD_COUNT = 300, 300
_HOLD_OUT_EVERY = 4
_SEED = 7
_MEMBERS = 8
#: Chosen by cross-validation within the fitted subnets.
_NETWORKS = NetworkSettings(hidden=(32,), penalty=3.0, epochs=2000, solver="lbfgs")


def evaluate_digits(checkpoint: Path) -> Iterator[tuple[int, int, EvaluatedSubnet]]:
    """Draw subnets and evaluate them one by one; yield the number done, the number of all, and the subnet."""
    space = DigitsSpace()
    tensors = export_state_dict(read_checkpoint(checkpoint).tensors, space)
    slicer = slicer_for(space)
    images = PreparedImages(DigitsImages("calibration"), DigitsImages("test"))
    rng = np.random.default_rng(_SEED)
    genomes = np.concatenate([space.sample(UNIFORM_COUNT, rng), stratified_genomes(space, SPREAD_COUNT, rng)])
    drawn = np.repeat(["uniform", "spread"], [UNIFORM_COUNT, SPREAD_COUNT])
    _, first = np.unique(genomes, axis=0, return_index=True)  # a subnet must not be both fitted on and held out
    first.sort()
    architectures, macs = space.decode(genomes[first]), space.macs(genomes[first])
    for i, architecture in enumerate(architectures):
        scores = evaluate_subnet(
            lambda chosen, statistics: slicer.slice(tensors.__getitem__, chosen, statistics),
            architecture,
            images,
        )
        yield (
            i + 1,
            len(architectures),
            EvaluatedSubnet(
                architecture=architecture,
                drawn=str(drawn[first[i]]),
                held_out=int(i % _HOLD_OUT_EVERY == 0),
                macs=int(macs[i]),
                accuracy=scores.accuracy,
                cross_entropy=scores.cross_entropy,
            ),
        )


def fit_digits(subnets: Sequence[EvaluatedSubnet]) -> AccuracyPredictor:
    """Fit a predictor on the subnets that are not held out, with its error on those that are."""
    space = DigitsSpace()
    one_hot = space.one_hot(space.encode([subnet.architecture for subnet in subnets]))
    accuracy = np.array([subnet.accuracy for subnet in subnets], np.float32)
    held = np.array([subnet.held_out for subnet in subnets], np.bool_)
    predictor = fit_networks(one_hot[~held], accuracy[~held], range(_SEED, _SEED + _MEMBERS), _NETWORKS)
    error = held_out_error(predictor.predict(one_hot[held]), accuracy[held], int((~held).sum()))
    return AccuracyPredictor.from_tensors(predictor.tensors(), error)

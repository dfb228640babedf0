"""The built-in supernet's bundle: reproducible, and as accurate as what ships with it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.digits.accuracy import load_evaluated
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.classifier import evaluate
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.slicing.subnet import slice_subnet


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    return SupernetBundle.open(path, expected_sha256=export_digits(path))


def test_an_export_is_reproducible(bundle: SupernetBundle, tmp_path: Path) -> None:
    assert export_digits(tmp_path / "again.supernet") == bundle.sha256


def test_subnets_are_as_accurate_as_recorded(bundle: SupernetBundle) -> None:
    """Sliced, calibrated and evaluated here without torch; a rounding may flip an image or two of 600."""
    calibration, test = DigitsImages("calibration"), DigitsImages("test")
    evaluated = load_evaluated()
    for subnet in evaluated[:: len(evaluated) // 4]:
        images = np.stack(list(calibration.images(subnet.architecture.r)))
        statistics = estimate_statistics(slice_subnet(bundle, subnet.architecture), [images])
        model = emit_onnx(slice_subnet(bundle, subnet.architecture, statistics))
        found = evaluate(model, test.images(subnet.architecture.r), test.labels)
        assert abs(found - subnet.accuracy) <= 2 / len(test)


def test_the_predictor_ranks_subnets_as_recorded(bundle: SupernetBundle) -> None:
    predictor = bundle.accuracy_predictor()
    assert predictor is not None
    held_out = [subnet for subnet in load_evaluated() if subnet.held_out]
    genomes = bundle.space.encode([subnet.architecture for subnet in held_out])
    error = predictor.predict(bundle.space.one_hot(genomes)) - [subnet.accuracy for subnet in held_out]
    assert predictor.held_out is not None
    assert 100 * np.abs(error).mean() == pytest.approx(predictor.held_out.mae_percent, rel=1e-3)

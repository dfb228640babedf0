"""Accuracy of a user's own model file on a run's evaluation images: where input and classes fit, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rigs.model_files import onnx_model

pytest.importorskip("sklearn")

from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.export import export_digits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return SupernetBundle.open(path)


@pytest.fixture(scope="module")
def models(bundle: SupernetBundle) -> BundleWinnerBuilder:
    return BundleWinnerBuilder(bundle, None, DigitsImages("test"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_file_of_the_same_classes_has_the_accuracy_of_the_subnet(
    bundle: SupernetBundle, models: BundleWinnerBuilder, runtime: Any
) -> None:
    if runtime == "litert":
        pytest.importorskip("ai_edge_litert.interpreter")
    (smallest,) = bundle.space.decode(bundle.space.smallest())
    subnet = models.calibrate(smallest, RuntimeSetting(runtime=runtime))
    found = models.accuracy_of_file(models.file(subnet), smallest.r)
    assert found == models.accuracy(subnet)
    assert found is not None
    assert found[1] == 600


def test_a_file_of_other_classes_has_none(bundle: SupernetBundle, models: BundleWinnerBuilder) -> None:
    (smallest,) = bundle.space.decode(bundle.space.smallest())
    channels = bundle.manifest.preprocessing.channels
    own = {"side": smallest.r, "channels": channels}
    assert models.accuracy_of_file(onnx_model(**own, classes=bundle.manifest.classes + 1), smallest.r) is None
    fitting = models.accuracy_of_file(onnx_model(**own, classes=bundle.manifest.classes), smallest.r)
    assert fitting is not None
    assert 0 <= fitting[0] < 0.5  # it was never trained


def test_without_images_nothing_is_evaluated(bundle: SupernetBundle, tmp_path: Path) -> None:
    (smallest,) = bundle.space.decode(bundle.space.smallest())
    assert BundleWinnerBuilder(bundle, None, None).accuracy_of_file(onnx_model(), smallest.r) is None

"""Evaluated digits subnets, the predictor fitted on them, and that both still belong to the checkpoint that ships."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

from fleetnas.supernet_export.accuracy.errors import held_out_error
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.accuracy.networks import NetworkSettings, fit_networks
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.digits.accuracy import load_evaluated, load_predictor, save_evaluated, save_predictor
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.classifier import evaluate
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.evaluation.prepared_images import PreparedImages
from fleetnas.supernet_export.evaluation.sampling import stratified_genomes
from fleetnas.supernet_export.evaluation.subnets import calibrated_graph, evaluate_subnet
from fleetnas.supernet_export.export import DIGITS_CHECKPOINT, export_state_dict
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.digits import DigitsSpace

SPACE = DigitsSpace()
TEST = DigitsImages("test")
IMAGES = PreparedImages(DigitsImages("calibration"), TEST)


@pytest.fixture(scope="module")
def slice_subnet():
    tensors = export_state_dict(read_checkpoint(DIGITS_CHECKPOINT).tensors, SPACE)
    slicer = slicer_for(SPACE)
    return lambda architecture, statistics: slicer.slice(tensors.__getitem__, architecture, statistics)


def test_shipped_subnets_have_the_accuracy_that_is_recorded(slice_subnet):
    subnets = load_evaluated()
    assert len(subnets) >= 400
    for subnet in subnets[:: len(subnets) // 2]:
        scores = evaluate_subnet(slice_subnet, subnet.architecture, IMAGES)
        # Another processor may round the logits of one image to the other side.
        assert scores.accuracy == pytest.approx(subnet.accuracy, abs=1.5 / len(TEST))
        assert scores.cross_entropy == pytest.approx(subnet.cross_entropy, abs=1e-3)


def test_scores_are_those_of_the_exported_file(slice_subnet):
    (architecture,) = SPACE.decode(SPACE.sample(1, np.random.default_rng(0)))
    graph, _ = calibrated_graph(slice_subnet, architecture, IMAGES)
    accuracy = evaluate(emit_onnx(graph), TEST.images(architecture.r), TEST.labels)
    assert evaluate_subnet(slice_subnet, architecture, IMAGES).accuracy == pytest.approx(accuracy)


def test_the_shipped_predictor_has_the_error_that_is_recorded():
    subnets, predictor = load_evaluated(), load_predictor()
    held = [subnet for subnet in subnets if subnet.held_out]
    fitted = {subnet.architecture.fingerprint for subnet in subnets if not subnet.held_out}
    assert not fitted & {subnet.architecture.fingerprint for subnet in held}
    predicted = predictor.predict(SPACE.one_hot(SPACE.encode([subnet.architecture for subnet in held])))
    measured = np.array([subnet.accuracy for subnet in held], np.float32)
    recorded = predictor.held_out
    assert recorded is not None
    assert recorded.samples == len(fitted) >= 300
    found = held_out_error(predicted, measured, len(fitted))
    assert found.to_json() == pytest.approx(recorded.to_json(), rel=1e-3)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    subnets, predictor = load_evaluated(), load_predictor()
    save_evaluated(tmp_path / "accuracy.csv", subnets)
    save_predictor(tmp_path / "accuracy.safetensors", predictor)
    assert load_evaluated(tmp_path / "accuracy.csv") == subnets
    again = load_predictor(tmp_path / "accuracy.safetensors")
    assert again.held_out == predictor.held_out
    one_hot = SPACE.one_hot(SPACE.sample(20, np.random.default_rng(0)))
    np.testing.assert_array_equal(again.predict(one_hot), predictor.predict(one_hot))


def test_the_fitted_network_averages_its_members():
    rng = np.random.default_rng(1)
    one_hot = SPACE.one_hot(SPACE.sample(60, rng))
    accuracy = (0.9 + 0.05 * np.tanh(one_hot @ rng.normal(size=one_hot.shape[1]))).astype(np.float32)
    settings = NetworkSettings(hidden=(6, 5), penalty=0.1, epochs=2000, solver="lbfgs")
    whole = fit_networks(one_hot, accuracy, (4, 5, 6), settings)
    members = [fit_networks(one_hot, accuracy, [seed], settings) for seed in (4, 5, 6)]
    average = np.mean([member.predict(one_hot) for member in members], axis=0)
    assert isinstance(whole, AccuracyPredictor)
    np.testing.assert_allclose(whole.predict(one_hot), average, atol=1e-5)
    # A member must not see another's hidden units.
    assert whole.tensors()["1.weight"].shape == (15, 18)
    assert not whole.tensors()["1.weight"][:5, 6:].any()
    assert held_out_error(whole.predict(one_hot), accuracy, 0).mae_percent < 0.1 * 100 * accuracy.std()


def test_held_out_error_equals_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    measured = (rng.integers(540, 600, 80) / 600).astype(np.float32)  # with ties, as accuracies have
    predicted = (measured + rng.normal(0, 0.02, 80)).astype(np.float32)
    found = held_out_error(predicted, measured, samples=7)
    assert found.spearman == pytest.approx(stats.spearmanr(predicted, measured).statistic)
    assert found.mae_percent == pytest.approx(100 * np.abs(predicted - measured).mean(), rel=1e-5)
    assert found.rmse_percent == pytest.approx(100 * np.sqrt(((predicted - measured) ** 2).mean()), rel=1e-5)
    assert (found.samples, found.held_out) == (7, 80)


def test_spread_genomes_reach_what_uniform_ones_do_not():
    rng = np.random.default_rng(3)
    uniform, spread = SPACE.macs(SPACE.sample(300, rng)), SPACE.macs(stratified_genomes(SPACE, 300, rng))
    assert (spread < uniform.min()).sum() > 10
    assert (spread > uniform.max()).sum() > 10
    np.testing.assert_array_equal(SPACE.encode(SPACE.decode(g := stratified_genomes(SPACE, 50, rng))), g)

"""`fleetnas accuracy fit`: kinds of predictors, what their figures mean, and a predictor in its bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from rigs.command_line import fleetnas

from fleetnas.coordinator.search.offline import load_accuracy
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.accuracy.candidates import PhysicalRidge, Ridge
from fleetnas.supernet_export.accuracy.errors import noise_ceiling, rank_correlation, split_half_reliability
from fleetnas.supernet_export.accuracy.fit import EvaluatedSubnets, fit_evaluated
from fleetnas.supernet_export.accuracy.link import logistic, logit, with_logistic
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor, HeldOut
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, SupernetBundle
from fleetnas.supernet_export.bundle_accuracy import put_accuracy_predictor
from fleetnas.supernet_export.digits.accuracy import load_evaluated
from fleetnas.supernet_export.evaluation.evaluation_file import (
    EvaluatedImages,
    EvaluatedLine,
    EvaluationFile,
    EvaluationHeader,
    supernet_digest,
)
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = DigitsSpace()
IMAGES = EvaluatedImages(digest="a" * 64, count=600)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    export_digits(tmp_path / "digits.supernet")
    return tmp_path / "digits.supernet"


def header(bundle: SupernetBundle, **changes: object) -> EvaluationHeader:
    known = {"bundle_sha256": bundle.sha256, "supernet_digest": supernet_digest(bundle), "space": "digits"}
    options = json.loads(json.dumps(dict(bundle.space.options)))
    sources = {"images": IMAGES, "calibration_images": IMAGES}
    return EvaluationHeader.model_validate({**known, "options": options, **sources, "subnets": 60, **changes})


def write_shards(folder: Path, bundle: SupernetBundle, count: int = 60, shards: int = 2) -> list[str]:
    """Files of evaluated subnets that ship with the package, whose halves differ by the noise of 300 images."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(shards):
        paths.append(folder / f"shard-{number}.jsonl")
        with EvaluationFile(paths[-1], header(bundle, shard=(number, shards))) as file:
            for index, subnet in list(enumerate(load_evaluated()[:count]))[number::shards]:
                even = rng.binomial(300, subnet.accuracy) / 300
                file.add(
                    EvaluatedLine(
                        index=index,
                        architecture=subnet.architecture,
                        drawn=subnet.drawn,
                        macs=subnet.macs,
                        accuracy=subnet.accuracy,
                        cross_entropy=subnet.cross_entropy,
                        images=600,
                        accuracy_even=even,
                        accuracy_odd=float(np.clip(2 * subnet.accuracy - even, 0, 1)),
                    )
                )
    return [str(path) for path in paths]


def test_a_fit_goes_into_its_bundle_and_leaves_the_rest(capsys, tmp_path, digits):
    before = SupernetBundle.open(digits)
    shards = write_shards(tmp_path, before)
    with Path(shards[0]).open("a") as file:
        line = {"index": 99, "architecture": load_evaluated()[200].architecture.model_dump(mode="json")}
        file.write(json.dumps({**line, "drawn": "uniform", "macs": 1, "failed": "its worker process died"}) + "\n")
    code, out, _ = fleetnas(capsys, "accuracy", "fit", *shards, "--bundle", str(digits))
    assert code == 0
    after = SupernetBundle.open(digits)
    assert after.sha256 in out
    assert after.sha256 != before.sha256
    assert supernet_digest(after) == supernet_digest(before)
    assert (
        after.manifest.model_copy(update={"accuracy_predictor": before.manifest.accuracy_predictor}) == before.manifest
    )
    for name in before.names:
        if not name.startswith(ACCURACY_PREFIX):
            np.testing.assert_array_equal(after.tensor(name), before.tensor(name))
    predictor = after.accuracy_predictor()
    assert predictor is not None
    error = predictor.held_out
    assert error is not None
    assert (error.samples, error.held_out) == (48, 60)
    assert error.spearman > 0.7
    assert error.ceiling == pytest.approx(error.reliability**0.5)
    assert f"rank correlation {error.spearman:.3f}" in out
    assert f"split-half reliability {error.reliability:.3f}" in out
    others = load_evaluated()[300:500]
    predicted = predictor.predict(SPACE.one_hot(SPACE.encode([one.architecture for one in others])))
    assert rank_correlation(predicted, np.array([one.accuracy for one in others])) > 0.75
    # The file of evaluated subnets still belongs to the bundle.
    assert (
        EvaluationHeader.model_validate_json(Path(shards[0]).read_text().splitlines()[0]).differences(
            header(after), of_shards=True
        )
        == []
    )


def test_a_predictor_of_another_space_does_not_go_into_a_bundle(digits):
    before = digits.read_bytes()
    predictor = AccuracyPredictor([np.ones((1, 3), np.float32)], [np.zeros(1, np.float32)])
    with pytest.raises(Exception, match="takes 3 features"):
        put_accuracy_predictor(SupernetBundle.open(digits), predictor, "of no use")
    assert digits.read_bytes() == before


def test_fits_that_cannot_be_meant_are_refused(capsys, tmp_path, digits):
    bundle = SupernetBundle.open(digits)
    shards = write_shards(tmp_path, bundle, count=4)
    before = digits.read_bytes()

    def refused(*arguments: str) -> str:
        code, _, err = fleetnas(capsys, "accuracy", "fit", *arguments)
        assert code == 2
        return err

    assert "give --bundle BUNDLE, or -o FILE" in refused(*shards)
    assert "give --bundle BUNDLE, or -o FILE" in refused(*shards, "--bundle", str(digits), "-o", "a.safetensors")
    assert "leave out --space" in refused(*shards, "--bundle", str(digits), "--space", "digits")
    assert "at least 50 evaluated subnets, found 4" in refused(*shards, "--bundle", str(digits))
    other = tmp_path / "other.jsonl"
    with EvaluationFile(other, header(bundle, precision="int8")):
        pass
    assert "--precision (fp32 there, int8 here)" in refused(shards[0], str(other), "--bundle", str(digits))
    strange = tmp_path / "strange.jsonl"
    with EvaluationFile(strange, header(bundle, supernet_digest="b" * 64)):
        pass
    assert "subnets of another supernet" in refused(str(strange), "--bundle", str(digits))
    table = tmp_path / "table.csv"
    table.write_text("r,top1\n8,0.5\n")
    assert "give --space NAME" in refused(str(table), "-o", str(tmp_path / "a.safetensors"))
    assert "no.jsonl cannot be read" in refused(str(tmp_path / "no.jsonl"), "--bundle", str(digits))
    assert digits.read_bytes() == before


def test_a_network_with_the_logistic_function_predicts_accuracies():
    rng = np.random.default_rng(0)
    one_hot = SPACE.one_hot(SPACE.sample(500, rng))
    weight = rng.normal(0, 1, one_hot.shape[1])
    linear = AccuracyPredictor([weight[None].astype(np.float32)], [np.array([1.0], np.float32)])
    logits = linear.predict(one_hot)
    found = with_logistic(linear).predict(one_hot)
    assert np.ptp(logits) > 8
    np.testing.assert_allclose(found, logistic(logits), atol=0.0014)
    order = np.argsort(logits)
    assert (np.diff(found[order]) >= -1e-6).all()
    np.testing.assert_allclose(logistic(logit(np.array([0.0, 0.5, 1.0]), 99)), [0.005, 0.5, 0.995])


def test_what_sees_physical_costs_becomes_a_network():
    rng = np.random.default_rng(1)
    genomes = np.unique(SPACE.sample(80, rng), axis=0)
    target = np.log(SPACE.macs(genomes)) + 0.05 * rng.normal(size=len(genomes))
    fitted = PhysicalRidge().fit(SPACE, genomes, target, 0)
    others = SPACE.sample(300, rng)
    assert rank_correlation(fitted.predict(others), SPACE.macs(others)) > 0.98
    network = fitted.network(np.random.default_rng(0))
    assert rank_correlation(network.predict(SPACE.one_hot(others)), fitted.predict(others)) > 0.98
    linear = Ridge().fit(SPACE, genomes, target, 0)
    np.testing.assert_allclose(
        linear.network(rng).predict(SPACE.one_hot(others)), linear.predict(others), rtol=1e-5, atol=1e-5
    )


def test_held_out_errors_are_those_of_subnets_that_were_not_seen():
    """Of pure noise nothing can be predicted, whichever kind is chosen."""
    rng = np.random.default_rng(2)
    genomes = np.unique(SPACE.sample(60, rng), axis=0)
    found = fit_evaluated(SPACE, EvaluatedSubnets(genomes, rng.uniform(0.6, 0.9, len(genomes))), rng)
    error = found.predictor.held_out
    assert error is not None
    assert error.spearman < 0.4
    assert error.held_out == len(genomes)
    assert error.reliability is None
    assert "reliability" not in error.to_json()


def test_reliability_and_ceiling_tell_the_noise_of_an_evaluation():
    rng = np.random.default_rng(3)
    truth, size = rng.normal(size=4000), 4000
    even, odd = truth + rng.normal(size=size), truth + rng.normal(size=size)
    measured = (even + odd) / 2
    reliability = split_half_reliability(even, odd)
    assert reliability == pytest.approx(1 / 1.5, abs=0.03)
    assert noise_ceiling(reliability) == pytest.approx(rank_correlation(truth, measured), abs=0.03)
    assert split_half_reliability(truth, -truth) == 0
    assert noise_ceiling(split_half_reliability(truth, truth)) == 1


def test_a_bundle_keeps_its_permissions_and_its_links(digits, tmp_path):
    bundle, link = tmp_path / "private.supernet", tmp_path / "link.supernet"
    bundle.write_bytes(digits.read_bytes())
    bundle.chmod(0o600)
    link.symlink_to(bundle.name)
    opened = SupernetBundle.open(link)
    features = SPACE.one_hot(SPACE.smallest()).shape[1]
    predictor = AccuracyPredictor([np.ones((1, features), np.float32)], [np.zeros(1, np.float32)])
    sha256 = put_accuracy_predictor(opened, predictor, "a test")
    assert link.is_symlink()
    assert SupernetBundle.open(bundle).sha256 == sha256
    assert bundle.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"kernels": [3, 5], "resolutions": [32, 48]}, True),
        ({"kernels": [3, 5], "resolutions": [32, 48], "classes": 3, "width": 0.5}, True),
        ({"kernels": [5, 7], "resolutions": [32, 48]}, False),
        ({"kernels": [3, 5], "resolutions": [48, 64]}, False),
        ({"kernels": [3, 5], "resolutions": [32, 48, 64]}, False),
        ({"kernels": [3, 5], "expands": [2, 3, 4], "resolutions": [32, 48]}, False),
    ],
)
def test_a_predictor_file_knows_the_choices_that_it_was_fitted_to(tmp_path, options, accepted):
    """As many columns with other meanings would be predicted nonsense for, in silence."""
    space = make_space("mbconv", {"kernels": [3, 5], "resolutions": [32, 48]})
    features = space.one_hot(space.smallest()).shape[1]
    predictor = AccuracyPredictor([np.ones((1, features), np.float32)], [np.zeros(1, np.float32)])
    predictor.save(tmp_path / "a.safetensors", space)
    found, other = AccuracyPredictor.load(tmp_path / "a.safetensors"), make_space("mbconv", options)
    if accepted:
        found.check_space(other)
        return
    with pytest.raises(UsageError, match="was fitted on this space"):
        found.check_space(other)
    with pytest.raises(UsageError, match=r"a\.safetensors"):
        load_accuracy(tmp_path / "a.safetensors", other)


def test_published_columns_do_not_depend_on_the_resolutions_of_a_space(tmp_path):
    space, part = make_space("ofa-mbv3"), make_space("ofa-mbv3", {"resolutions": [160, 192]})
    predictor = AccuracyPredictor([np.ones((1, 128), np.float32)], [np.zeros(1, np.float32)])
    predictor.save(tmp_path / "a.safetensors", space)
    AccuracyPredictor.load(tmp_path / "a.safetensors").check_space(part)


def test_what_is_not_known_of_a_held_out_error_is_not_written(tmp_path):
    error = HeldOut(samples=1, held_out=2, spearman=0.5, mae_percent=1, rmse_percent=2)
    assert set(error.to_json()) == {"samples", "held_out", "spearman", "mae_percent", "rmse_percent"}
    network = AccuracyPredictor([np.ones((1, 3), np.float32)], [np.zeros(1, np.float32)], error)
    network.save(tmp_path / "a.safetensors")
    assert AccuracyPredictor.load(tmp_path / "a.safetensors").held_out == error

"""Accuracy predictors: parity with the published ones, safe reading, fitting with an honest error."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rigs import peer

from fleetnas.fleet_protocol.errors import CheckpointError, UsageError
from fleetnas.supernet_export.accuracy.fit import FitSettings, fit_accuracy
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint
from fleetnas.supernet_export.evaluation.evaluated_subnets import read_evaluated
from fleetnas.supernet_export.spaces.registry import make_space


def _predictor(inputs: int, seed: int = 0, hidden: int = 30) -> AccuracyPredictor:
    rng = np.random.default_rng(seed)
    shapes = [(hidden, inputs), (hidden, hidden), (1, hidden)]
    weights = [(rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32) for shape in shapes]
    return AccuracyPredictor(weights, [rng.standard_normal(len(w)).astype(np.float32) * 0.1 for w in weights])


def test_predictions_are_the_published_mobilenet_predictors(public_data: Path) -> None:
    torch = pytest.importorskip("torch")
    module = peer.import_peer("ofa.tutorial.accuracy_predictor")
    path = public_data / "ofa_mbv3" / "acc_predictor.pth"
    theirs = module.AccuracyPredictor(pretrained=False, device="cpu")
    theirs.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    space = make_space("ofa-mbv3")
    genomes = space.sample(1000, np.random.default_rng(0))
    specs = [
        {"ks": list(a.ks), "e": [int(ratio) for ratio in a.e], "d": list(a.d), "r": [a.r]}
        for a in space.decode(genomes)
    ]
    wanted = theirs.predict_accuracy(specs).numpy()[:, 0]
    found = AccuracyPredictor.from_pth(path).predict(space.one_hot(genomes))
    assert np.abs(found - wanted).max() <= 1e-5


def test_predictions_are_the_published_resnet_predictors(public_data: Path) -> None:
    pytest.importorskip("torch")
    module = peer.import_peer("ofa.nas.accuracy_predictor")
    path = public_data / "ofa_resnet50" / "acc_predictor.pth"
    space = make_space("ofa-resnet50")
    encoder = module.ResNetArchEncoder(image_size_list=list(space.resolutions))
    theirs = module.AccuracyPredictor(encoder, 400, 3, checkpoint_path=str(path), device="cpu")
    genomes = space.sample(1000, np.random.default_rng(0))
    specs = [
        {"d": list(a.d), "e": [ratio or 0.2 for ratio in a.e], "w": list(a.w), "image_size": a.r}
        for a in space.decode(genomes)
    ]
    wanted = theirs.predict_acc(specs).detach().numpy()
    found = AccuracyPredictor.from_pth(path).predict(space.one_hot(genomes))
    assert np.abs(found - wanted).max() <= 1e-5


def test_the_gradient_is_that_of_the_prediction() -> None:
    predictor = _predictor(12)
    x = np.random.default_rng(1).random((20, 12)).astype(np.float32)
    gradient = predictor.gradient(x)
    step = 1e-3
    for feature in range(12):
        moved = x.copy()
        moved[:, feature] += step
        slope = (predictor.predict(moved) - predictor.predict(x)) / step
        # A row may cross a kink of a rectifier within the step.
        assert np.median(np.abs(slope - gradient[:, feature])) < 1e-3


def test_a_batch_is_predicted_as_its_rows_are() -> None:
    predictor = _predictor(12)
    x = np.random.default_rng(1).random((1300, 12)).astype(np.float32)
    singly = np.concatenate([predictor.predict(row[None]) for row in x[::37]])
    assert np.abs(predictor.predict(x)[::37] - singly).max() < 1e-6


def test_a_predictor_survives_its_tensors_and_its_file(tmp_path: Path) -> None:
    predictor = _predictor(12)
    x = np.random.default_rng(1).random((5, 12)).astype(np.float32)
    predictor.save(tmp_path / "predictor.safetensors")
    for again in (
        AccuracyPredictor.from_tensors(predictor.tensors()),
        AccuracyPredictor.load(tmp_path / "predictor.safetensors"),
    ):
        assert np.array_equal(again.predict(x), predictor.predict(x))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("1.bias"),
        lambda tensors: tensors.update({"0.weight": tensors["0.weight"][:, 0]}),
        lambda tensors: tensors.update({"1.weight": tensors["1.weight"][:, :-1]}),
        lambda tensors: tensors.update({"2.bias": np.full(1, np.nan, np.float32)}),
        lambda tensors: tensors.update({"2.weight": np.zeros((2, 30), np.float32), "2.bias": np.zeros(2, np.float32)}),
        lambda tensors: tensors.clear(),
    ],
)
def test_tensors_that_are_no_predictor_are_refused(spoil: object) -> None:
    tensors = dict(_predictor(12).tensors())
    spoil(tensors)  # type: ignore[operator]
    with pytest.raises(CheckpointError):
        AccuracyPredictor.from_tensors(tensors)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("layout", ["zip", "stream", "bare"])
def test_a_pickle_that_calls_is_refused_and_does_not_run(tmp_path: Path, layout: str) -> None:
    path, marker = tmp_path / "predictor.pth", tmp_path / "was_run"
    if layout == "bare":
        path.write_bytes(pickle.dumps({"0.weight": _Malicious(marker)}))
    else:
        torch = pytest.importorskip("torch")
        torch.save({"0.weight": _Malicious(marker)}, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(CheckpointError, match="nothing was run"):
        AccuracyPredictor.from_pth(path)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_state_dicts_are_read_as_torch_reads_them(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 4, generator=generator)
    state = {
        "plain": matrix,
        "transposed": matrix.t(),
        "window": matrix[2:4, 1:3],
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
        "integers": torch.arange(5),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(3, generator=generator).half(),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "state.pth"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(path, use_torch=False).tensors
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert np.array_equal(found[name], tensor.detach().float().numpy()), name


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, public_data: Path) -> None:
    whole = (public_data / "ofa_mbv3" / "acc_predictor.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for content in (whole[: len(whole) // 2], whole[:300], b"", b"hello", whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            AccuracyPredictor.from_pth(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not a tensor")
    with pytest.raises(CheckpointError):
        AccuracyPredictor.from_pth(path)
    with pytest.raises(CheckpointError, match="check the path"):
        AccuracyPredictor.from_pth(tmp_path / "absent.pth")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "short.pth"
    torch.save({"0.weight": torch.zeros(4, 4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(CheckpointError, match="reaches beyond its storage"):
        read_checkpoint(path, use_torch=False)


def test_a_fit_reports_its_error_on_what_it_has_not_seen(public_data: Path) -> None:
    pytest.importorskip("sklearn")
    space = make_space("ofa-mbv3", {"resolutions": [224]})
    genomes, top1 = read_evaluated(public_data / "ofa_mbv3" / "imagenet_top1_w1.0.csv", space)
    quick = FitSettings(members=1, epochs=80)
    order = np.random.default_rng(1).permutation(len(genomes))
    seen, unseen = order[:500], order[500:]
    predictor = fit_accuracy(space, genomes[seen], top1[seen], np.random.default_rng(0), quick)
    assert predictor.held_out is not None
    assert (predictor.held_out.samples, predictor.held_out.held_out) == (400, 100)
    assert predictor.held_out.spearman > 0.97
    # What it says of itself holds on a thousand others.
    error_percent = 100 * np.abs(predictor.predict(space.one_hot(genomes[unseen])) - top1[unseen]).mean()
    assert error_percent == pytest.approx(predictor.held_out.mae_percent, rel=0.35)


def test_too_few_samples_and_percents_are_refused() -> None:
    space = make_space("digits")
    genomes = space.sample(60, np.random.default_rng(0))
    with pytest.raises(UsageError, match="at least 50"):
        fit_accuracy(space, genomes[:20], np.full(20, 0.9), np.random.default_rng(0))
    with pytest.raises(UsageError, match="fractions"):
        fit_accuracy(space, genomes, np.full(60, 76.1), np.random.default_rng(0))


def test_rows_are_averaged_per_architecture_and_errors_name_their_line(tmp_path: Path) -> None:
    space = make_space("compofa")
    (architecture,) = space.decode(space.smallest())
    lists = ",".join(" ".join(f"{x:g}" for x in getattr(architecture, key)) for key in ("ks", "e", "d"))
    path = tmp_path / "accuracy.csv"
    path.write_text(f"ks,e,d,r,top1_percent\n{lists},128,70\n{lists},128,71\n{lists},130,50\n")
    genomes, top1 = read_evaluated(path, space)
    assert np.array_equal(genomes, space.smallest())
    assert top1 == pytest.approx([0.705])
    path.write_text(f"ks,e,d,r,top1_percent\n{lists},128,70\n{lists},large,71\n")
    with pytest.raises(UsageError, match="line 3"):
        read_evaluated(path, space)
    evaluated = path.with_suffix(".jsonl")
    line = {"architecture": architecture.model_dump(mode="json"), "accuracy": 0.71, "bytes": 3}
    evaluated.write_text(f"{json.dumps(line)}\n\n{json.dumps({**line, 'accuracy': 0.73})}\n")
    genomes, top1 = read_evaluated(evaluated, space)
    assert np.array_equal(genomes, space.smallest())
    assert top1 == pytest.approx([0.72])
    evaluated.write_text(f"{json.dumps(line)}\n{{}}\n")
    with pytest.raises(UsageError, match="line 2 is no evaluated subnet"):
        read_evaluated(evaluated, space)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="columns r, top1_percent"):
        read_evaluated(path, space)

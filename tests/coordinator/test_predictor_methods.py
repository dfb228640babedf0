"""`fleetnas predictor evaluate --method`: the predictor and the papers' baselines on the same draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from rigs.command_line import fleetnas

from fleetnas.coordinator.predictors.evaluation.dataset import LatencyData, read_hardware, read_latency_data
from fleetnas.coordinator.predictors.evaluation.methods import MethodName, method_factory
from fleetnas.coordinator.predictors.evaluation.studies import EvaluationRow, leave_family_out, table_lines
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.registry import make_space

SETTINGS = ("pi3", "pi4", "pi5", "nano")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four devices whose latencies are a mixture of two kinds of cost, by one parameter."""
    rng = np.random.default_rng(0)
    space = make_space("digits")
    genomes = np.unique(space.sample(120, rng), axis=0)
    features = FeatureMap(space).features(genomes)
    typical = np.maximum(features.mean(axis=0), 1e-9)
    compute, memory = rng.gamma(2.0, 1.0, (2, features.shape[1])) / typical / features.shape[1]
    latency = {
        name: ((1 + i) * (features @ ((1 - i / 3) * compute + i / 3 * memory))).tolist()
        for i, name in enumerate(SETTINGS)
    }
    content = {
        "space": "digits",
        "architectures": [one.model_dump(mode="json") for one in space.decode(genomes)],
        "latency_ms": latency,
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def hardware(tmp_path: Path) -> Path:
    path = tmp_path / "hardware.json"
    path.write_text(json.dumps({name: {"memory": i / 3, "clock": None} for i, name in enumerate(SETTINGS)}))
    return path


def rows_of(data: LatencyData, method: MethodName, hardware: Path, samples: int) -> list[EvaluationRow]:
    parameters = read_hardware(hardware) if method == "hardware" else None
    return leave_family_out(data, method_factory(method, parameters), samples=(samples,), draws=2, held_out=40)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_each_method_predicts_every_device_from_a_few_measurements(
    file: Path, hardware: Path, method: MethodName
) -> None:
    rows = rows_of(read_latency_data(file), method, hardware, 20)
    assert [row.setting for row in rows if row.choice == "random"] == list(SETTINGS)
    assert all(row.score.spearman > 0.8 for row in rows), [row.score for row in rows]
    chooses = method in ("bayesian", "hardware")
    assert {row.choice for row in rows} == ({"random", "own"} if chooses else {"random"})
    assert all(np.isnan(row.score.coverage_percent) != chooses for row in rows)
    assert all(line.endswith("%") == chooses for line in table_lines(rows)[1:])


def test_only_methods_with_a_prior_predict_before_the_first_measurement(file: Path, hardware: Path) -> None:
    data = read_latency_data(file)
    for method in ("bayesian", "hardware"):
        assert all(np.isfinite(row.score.mape_percent) for row in rows_of(data, method, hardware, 0))
    for method in ("fine-tuned", "block-table", "rescaled-table", "macs"):
        with pytest.raises(UsageError, match="too few for this method; give 2 or more"):
            rows_of(data, method, hardware, 0)


@pytest.mark.parametrize("method", ["block-table", "macs"])
def test_baselines_over_a_design_space_refuse_data_without_one(tmp_path: Path, method: MethodName) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, ops=rng.integers(0, 3, (40, 5)), latency_a=rng.gamma(2, 1, 40), latency_b=rng.gamma(2, 1, 40))
    with pytest.raises(UsageError, match="known design space"):
        leave_family_out(read_latency_data(path), method_factory(method), samples=(5,), draws=1)


def test_the_command_takes_the_method_and_its_parameters(
    capsys: pytest.CaptureFixture[str], file: Path, hardware: Path
) -> None:
    evaluate = ("predictor", "evaluate", str(file), "--samples", "8", "--draws", "1")
    code, out, _ = fleetnas(capsys, *evaluate, "--method", "macs")
    assert (code, len(out.splitlines())) == (0, 1 + len(SETTINGS))
    code, out, _ = fleetnas(capsys, *evaluate, "--method", "hardware", "--parameters", str(hardware))
    assert (code, len(out.splitlines())) == (0, 1 + 2 * len(SETTINGS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "hardware"), "give --parameters FILE"),
        (("--parameters", "hardware.json"), "leave out --parameters"),
        (("--method", "hardware", "--parameters", "none.json"), "none.json"),
        (("--method", "sideways"), "sideways"),
        (("--samples", "-3"), "-3"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    capsys: pytest.CaptureFixture[str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(file.parent)
    code, out, err = fleetnas(capsys, "predictor", "evaluate", str(file), *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize("text", ["[]", '{"pi4": 3}', '{"pi4": {"clock": 1e999}}', "no JSON"])
def test_a_file_without_hardware_parameters_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "parameters.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no hardware parameters"):
        read_hardware(path)

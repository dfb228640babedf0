"""The times of a model's layers, from the runtime's own profiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rigs.untrained_supernet import write_untrained

from fleetnas.agent.cli.layer_lines import layer_lines
from fleetnas.agent.cli.main import main
from fleetnas.agent.runtimes.layer_profile import read_layers
from fleetnas.agent.runtimes.onnxruntime_runtime import OnnxRuntime
from fleetnas.fleet_protocol.codec import MAX_JSON_BYTES
from fleetnas.fleet_protocol.layer_times import MAX_LAYERS, LayerTime
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model

pytest.importorskip("onnxruntime")


def event(name: str, dur: int, op: str = "Conv") -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": op, "provider": "CPU"}}


def test_layers_are_means_without_the_warm_up_and_the_slowest_runs(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    runs = [[100, 90], [80, 70], *([10, 4], [12, 6]) * 5, [900, 4]]
    events: list[object] = [{"cat": "Session", "name": "model_run", "dur": 5}, "no event"]
    for conv, pool in runs:
        events += [
            event("conv", conv),
            event("pool\x1b[2J", pool, "Pool"),
            {"cat": "Node", "name": "conv_fence_before"},
        ]
    path.write_text(json.dumps(events))
    conv, pool = read_layers(path)
    assert (conv.name, conv.op, conv.mean_us) == ("conv", "Conv", 11.0)
    assert (pool.op, pool.mean_us) == ("Pool", pytest.approx(4.8))
    assert pool.name.isprintable()


def test_of_too_many_layers_the_slowest_are_kept_and_the_rest_is_summed(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([event("x" * 200 + str(n), n + 1) for n in range(MAX_LAYERS + 50)]))
    layers = read_layers(path, warm_up=0)
    assert len(layers) == MAX_LAYERS
    assert (layers[-1].name, layers[-1].mean_us) == ("51 other layers", sum(range(1, 52)))
    assert [layer.mean_us for layer in layers[:-1]] == [float(n) for n in range(52, MAX_LAYERS + 51)]
    assert sum(len(layer.model_dump_json()) for layer in layers) < MAX_JSON_BYTES / 2


def test_onnxruntime_times_every_layer_of_a_subnet(tmp_path: Path) -> None:
    bundle = SupernetBundle.open(write_untrained(tmp_path / "s.supernet"))
    (architecture,) = bundle.space.decode(bundle.space.largest())
    setting = RuntimeSetting()
    layers = OnnxRuntime().profile(build_model(bundle, architecture, None, setting), setting)
    kinds = {layer.op for layer in layers}
    assert len(layers) > 10
    assert any("Conv" in kind for kind in kinds), kinds
    assert all(layer.mean_us >= 0 for layer in layers)


def test_bench_prints_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))
    bundle = SupernetBundle.open(write_untrained(tmp_path / "s.supernet"))
    (architecture,) = bundle.space.decode(bundle.space.smallest())
    model = tmp_path / "model.onnx"
    model.write_bytes(build_model(bundle, architecture, None, RuntimeSetting()))
    quick = ("--runs", "3", "--time", "0.01", "--half-width", "100")

    def printed(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["bench", str(model), *quick, *more])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert "as each is clocked by itself" in printed("--profile")
    assert len(json.loads(printed("--profile", "--json"))["layers"]) > 5
    assert "layers" not in json.loads(printed("--json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model.tflite", "--profile"), "--profile is not to be had of runtime litert"),
        (("model.onnx", "--profile", "--sustained", "1m"), "--profile cannot be combined with --sustained"),
    ],
)
def test_a_profile_that_cannot_be_had_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / arguments[0]).touch()
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_profile_is_readable_in_ascii() -> None:
    layers = [LayerTime(name="stem", op="Conv", mean_us=30.0), LayerTime(name="x" * 60, op="Gemm", mean_us=10.0)]
    lines = layer_lines(layers, ascii_only=True)
    assert all(line.isascii() for line in lines)
    assert "75.0 %" in lines[1]
    assert lines[-1].endswith(f"25.0 % {'#' * 8}")

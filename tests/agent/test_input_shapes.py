"""Models of the user's own: sides that they leave open, and weights that lie beside them."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rigs import waiting
from rigs.runtime_stand_ins import attach_phone, become_jetson, provide_command

from fleetnas.agent.measuring.bench import bench_model
from fleetnas.agent.measuring.messages import BenchOrder, MeasuredReply
from fleetnas.agent.measuring.order_executor import OrderExecutor
from fleetnas.agent.runtimes.input_shapes import DeclaredInput, choose_shapes, parse_input_shape, spell
from fleetnas.agent.runtimes.model_file import open_model
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.graph import INPUT, OUTPUT, Conv, GlobalAveragePool, Graph, Linear

SHORT = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, half_width_percent=1000)
IMAGE = DeclaredInput("image", (None, 3, None, None))
TOKENS = DeclaredInput("tokens", (None, None))


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETNAS_HOST_LOCK", str(tmp_path / "lock"))


def onnx_model(sides: tuple[int | str | None, ...] = ("batch", 3, "height", "width"), seed: int = 0) -> onnx.ModelProto:
    """A convolution over an image, then its average."""
    weight = np.random.default_rng(seed).standard_normal((8, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["out"])]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, sides)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ("batch", 8, 1, 1))
    graph = helper.make_graph(nodes, "g", [image], [out], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def saved(folder: Path, model: onnx.ModelProto, weights: str = "") -> Path:
    """The model in a folder of its own, with its weights in a file beside it where that is named."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    if weights:
        onnx.save_model(model, path, save_as_external_data=True, location=weights, size_threshold=0)
    else:
        onnx.save_model(model, path)
    return path


def tflite_model(path: Path, open_sides: tuple[int, ...]) -> Path:
    """A network on 14 x 14 pixels whose signature leaves these sides open."""
    from ai_edge_litert import schema_py_generated as schema

    conv = Conv(
        name="conv",
        source=INPUT,
        weight=np.ones((4, 3, 1, 1), np.float32),
        bias=np.zeros(4, np.float32),
        norm=None,
        stride=1,
        padding=0,
        groups=1,
        activation="none",
    )
    head = Linear(name=OUTPUT, source="pool", weight=np.ones((2, 4), np.float32), bias=np.zeros(2, np.float32))
    graph = Graph((conv, GlobalAveragePool(name="pool", source="conv"), head), input_shape=(3, 14, 14), classes=2)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(emit_tflite(graph)))
    (subgraph,) = model.subgraphs
    tensor = subgraph.tensors[subgraph.inputs[0]]
    tensor.shapeSignature = [
        -1 if side in open_sides else 14 if side in (1, 2) else (1, 0, 0, 3)[side] for side in range(4)
    ]
    tensor.shape = [1 if side < 0 else side for side in tensor.shapeSignature]  # as converters write it
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def bench(model: Path, setting: RuntimeSetting | None = None, **shapes: tuple[int, ...]) -> MeasuredReply:
    """What the measuring child does with a model file."""
    asked = {name.replace("nameless", ""): shape for name, shape in shapes.items()}
    order = BenchOrder(model_path=str(model), setting=setting or RuntimeSetting(), protocol=SHORT, input_shapes=asked)
    reply = OrderExecutor().execute(order, lambda phase, fraction: None)
    assert isinstance(reply, MeasuredReply)
    return reply


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "fleetnas.agent", "bench", *map(str, arguments), "--time", "0", "--runs", "3"]
    here = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(here)}
    return waiting.run(words, cwd=cwd, env=environment)


# -- what an option says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("1x3x224x224", "", (1, 3, 224, 224)),
        ("1,3,224,224", "", (1, 3, 224, 224)),
        ("[1,3,224,224]", "", (1, 3, 224, 224)),
        ("image=1X3X8X8", "image", (1, 3, 8, 8)),
        ("input:0=1x8", "input:0", (1, 8)),
        ("input:0:1x8", "input:0", (1, 8)),
        ("image:7", "image", (7,)),
    ],
)
def test_a_shape_is_read_with_or_without_its_input(text: str, name: str, shape: tuple[int, ...]) -> None:
    assert parse_input_shape(text) == (name, shape)


@pytest.mark.parametrize("text", ["", "1x", "x1", "0x3", "1x-3", "image=", "=1x3", "axb", "1x3x1e9", "1 3", "٣x3"])
def test_a_shape_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1x3x224x224"):
        parse_input_shape(text)


def test_only_the_leading_axis_is_one_by_itself() -> None:
    assert choose_shapes([DeclaredInput("x", (None, 3, 8, 8))], {}) == {"x": (1, 3, 8, 8)}
    assert choose_shapes([DeclaredInput("x", ()), DeclaredInput("y", (None,))], {}) == {"x": (), "y": (1,)}
    with pytest.raises(UsageError, match=r"image \(\?x3x\?x\?\).*--input-shape image=1x3x224x224"):
        choose_shapes([IMAGE], {})
    with pytest.raises(UsageError, match="--input-shape tokens=1x128"):
        choose_shapes([TOKENS], {})


def test_what_was_asked_for_must_fit_and_must_say_what_it_is_for() -> None:
    assert choose_shapes([IMAGE], {"": (2, 3, 9, 7)}) == {"image": (2, 3, 9, 7)}
    fixed = DeclaredInput("scale", (1,))
    assert choose_shapes([fixed, IMAGE], {"": (1, 3, 9, 7)}) == {"scale": (1,), "image": (1, 3, 9, 7)}
    assert choose_shapes([TOKENS, IMAGE], {"tokens": (1, 5), "": (1, 3, 4, 4)})["image"] == (1, 3, 4, 4)
    for declared, asked, says in (
        ([IMAGE], {"": (1, 4, 9, 7)}, "does not fit"),
        ([IMAGE], {"": (1, 3, 9)}, "does not fit"),
        ([IMAGE], {"picture": (1, 3, 9, 7)}, "no input 'picture'"),
        ([IMAGE, TOKENS], {"": (1, 3, 9, 7)}, "NAME=SHAPE"),
        ([DeclaredInput("x", (1, 3))], {"": (2, 3)}, "does not fit"),
    ):
        with pytest.raises(UsageError, match=says):
            choose_shapes(declared, asked)
    assert (spell((1, 3)), spell(())) == ("1x3", "scalar")


# -- what is timed -----------------------------------------------------------------------------------------------


def test_an_onnx_model_with_open_sides_is_timed_at_the_shape_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path, onnx_model())
    with pytest.raises(UsageError, match="--input-shape image=1x3x224x224"):
        bench(model)
    reply = bench(model, image=(1, 3, 64, 32))
    assert (reply.input_shapes, reply.cores) == ({"image": (1, 3, 64, 32)}, tuple(sorted(os.sched_getaffinity(0))))
    assert bench(saved(tmp_path / "fixed", onnx_model(("batch", 3, 8, 8)))).input_shapes == {"image": (1, 3, 8, 8)}


def test_a_shape_that_a_model_does_not_run_on_is_the_users_to_change(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not run on image 1x4x8x8.*--input-shape"):
        bench(saved(tmp_path, onnx_model((None, None, None, None))), nameless=(1, 4, 8, 8))


def test_the_command_says_which_shape_and_cores_were_timed(tmp_path: Path) -> None:
    model = saved(tmp_path, onnx_model())
    refused = command(model)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "only the first of them, the batch, is 1 by itself" in refused.stderr
    done = command(model, "--input-shape", "1x3x16x16")
    assert done.returncode == 0, done.stderr
    assert "input image 1x3x16x16; cores " in done.stdout
    twice = command(model, "--input-shape", "1x3x8x8", "--input-shape", "1x3x9x9")
    assert (twice.returncode, "twice" in twice.stderr) == (2, True)
    windows = ("--sustained", "1s", "--window", "0.3s", "--input-shape", "1x3x16x16")
    words = [sys.executable, "-m", "fleetnas.agent", "bench", str(model), *windows]
    sustained = waiting.run(words)
    assert "input image 1x3x16x16; cores " in sustained.stdout


def test_a_tflite_model_with_open_sides_is_timed_at_the_shape_asked_for(tmp_path: Path) -> None:
    litert = RuntimeSetting(runtime="litert")
    assert list(bench(tflite_model(tmp_path / "fixed.tflite", (0,)), litert).input_shapes.values()) == [(1, 14, 14, 3)]
    model = tflite_model(tmp_path / "open.tflite", (0, 1, 2))
    with pytest.raises(UsageError, match="--input-shape input=1x224x224x3"):
        bench(model, litert)
    assert list(bench(model, litert, nameless=(1, 14, 14, 3)).input_shapes.values()) == [(1, 14, 14, 3)]


def test_a_phone_is_told_the_shape_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = attach_phone(tmp_path, monkeypatch)
    adb = RuntimeSetting(runtime="adb")
    model = tflite_model(tmp_path / "open.tflite", (0, 1, 2))
    with pytest.raises(UsageError, match="--input-shape input=1x224x224x3"):
        bench(model, adb)
    assert not (phone / "data/local/tmp/fleetnas").exists(), "nothing was pushed"
    assert bench(model, adb, nameless=(1, 14, 14, 3)).input_shapes == {"input": (1, 14, 14, 3)}
    lines = [line for line in (phone / "log").read_text().splitlines() if "benchmark_model" in line]
    assert all("--input_layer=input --input_layer_shape=1,14,14,3" in line for line in lines)


def test_a_program_of_the_users_chooses_its_shapes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_command(tmp_path, monkeypatch)
    own = RuntimeSetting(runtime="command")
    assert bench(saved(tmp_path, onnx_model((1, 3, 8, 8))), own).input_shapes == {"image": (1, 3, 8, 8)}
    with pytest.raises(UsageError, match="leave out --input-shape"):
        bench(saved(tmp_path, onnx_model((1, 3, 8, 8))), own, nameless=(1, 3, 8, 8))


# -- weights beside the model ------------------------------------------------------------------------------------


def test_weights_are_found_beside_the_model_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "models", onnx_model((1, 3, 8, 8)), "weights.bin")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights.bin").write_bytes(b"another model's")
    done = command(path, "--json", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    whole = path.read_bytes() + (path.parent / "weights.bin").read_bytes()
    assert json.loads(done.stdout)["model_sha256"] == hashlib.sha256(whole).hexdigest()
    assert json.loads(done.stdout)["model_bytes"] == len(whole)


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    one, two = (
        open_model(saved(tmp_path / str(seed), onnx_model((1, 3, 8, 8), seed), "weights.bin"), {}) for seed in (1, 2)
    )
    assert one.content == two.content
    assert one.sha256 != two.sha256
    plain = open_model(saved(tmp_path / "plain", onnx_model()), {})
    assert plain.weights == ()
    assert plain.sha256 == hashlib.sha256(plain.content).hexdigest()


def test_weights_in_a_subgraph_count_too(tmp_path: Path) -> None:
    path = saved(tmp_path, onnx_model((1, 3, 8, 8)), "weights.bin")
    inner = onnx.load_model(path, load_external_data=False)
    branch = helper.make_graph([], "branch", [], [], [inner.graph.initializer[0]])
    branch.initializer[0].external_data[0].value = "more.bin"
    condition = helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=branch)
    (tmp_path / "more.bin").write_bytes(b"x")
    (tmp_path / "outer.onnx").write_bytes(
        helper.make_model(helper.make_graph([condition], "g", [], [])).SerializeToString()
    )
    assert [file.name for file in open_model(tmp_path / "outer.onnx", {}).weights] == ["more.bin"]


def test_weights_that_are_missing_or_not_beside_the_model_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, onnx_model((1, 3, 8, 8)), "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UsageError, match=r"keeps its weights in weights\.bin, which is not beside it"):
        bench(path)
    for place in ("../weights.bin", "/etc/passwd"):
        model: Any = onnx.load_model(path, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = place
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UsageError, match="save the model again"):
            bench(path)


def test_a_users_program_gets_the_file_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_command(tmp_path, monkeypatch)
    path = saved(tmp_path / "models", onnx_model((1, 3, 8, 8)), "weights.bin")
    assert bench(path, RuntimeSetting(runtime="command")).timing.runs >= 3


def test_an_engine_belongs_to_its_weights_and_not_to_its_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become_jetson(tmp_path, monkeypatch)
    setting, engines = RuntimeSetting(provider="tensorrt"), tmp_path / "engines"
    for seed in (1, 2):
        path = saved(tmp_path / str(seed), onnx_model((1, 3, 8, 8), seed), "weights.bin")
        reply = bench_model(path, setting, SHORT, lambda phase: None, engine_folder=engines)
        assert (engines / reply.model_sha256).is_dir()


def test_rubbish_is_still_refused_by_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"rubbish" * 9)
    with pytest.raises(FleetnasError, match="does not load the model"):
        bench(tmp_path / "model.onnx")

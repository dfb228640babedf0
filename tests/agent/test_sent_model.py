"""Model files that a coordinator sends: which are refused before a runtime sees them, and how others are measured."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from onnx import helper
from rigs.model_files import changed, claim_two_gigabytes, keep_weights_elsewhere, onnx_model

from fleetnas.agent.measuring.messages import MeasuredReply, ModelOrder, ReferenceOrder, SlowReply
from fleetnas.agent.measuring.order_executor import OrderExecutor
from fleetnas.agent.measuring.sent_model import try_model
from fleetnas.agent.runtimes.model_file import ModelFile
from fleetnas.agent.runtimes.registry import make_runtime
from fleetnas.agent.runtimes.sent_model import check_model, format_of, takes_format
from fleetnas.agent.runtimes.tflite_tables import BrokenTableError, read_tflite
from fleetnas.fleet_protocol.errors import HashMismatchError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.fleet_protocol.orders import MAX_MODEL_BYTES, ModelFormat, ModelReference
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.model_file import build_model

QUICK = MeasurementProtocol(warmup_runs=1, warmup_s=0.0, min_runs=5, min_s=0.01, max_s=0.5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return SupernetBundle.open(path)


@pytest.fixture(scope="module")
def tflite(digits: SupernetBundle) -> bytes:
    (smallest,) = digits.space.decode(digits.space.smallest())
    return build_model(digits, smallest, None, RuntimeSetting(runtime="litert"))


def test_own_models_pass_with_their_inputs(tflite: bytes) -> None:
    assert [str(each) for each in check_model("m", onnx_model(), "onnx")] == ["input (1x3x8x8)"]
    assert [str(each) for each in check_model("m", onnx_model(open_sides=True), "onnx")] == ["input (?x3x?x?)"]
    ((_, sides),) = [(each.name, each.sides) for each in check_model("m", tflite, "tflite")]
    assert len(sides) == 4
    assert None not in sides


def local_function(model: Any) -> None:
    """Give the model's operator of a domain of its own a body."""
    node = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Own", ["x"], ["y"], [node], opset))


def test_functions_that_a_model_defines_are_no_custom_operators() -> None:
    content = onnx_model(domain="mine", operator="Own")
    assert check_model("m", changed(content, local_function), "onnx")


def hidden_custom_operator(model: Any) -> None:
    """Put a custom operator into a branch."""
    inner = helper.make_graph([helper.make_node("Evil", ["input"], ["z"], domain="evil.lib")], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (changed(onnx_model(), keep_weights_elsewhere), "onnx", "keeps weights in another file"),
        (changed(onnx_model(), claim_two_gigabytes), "onnx", "says that tensor 'weights' has 536,870,912 elements"),
        (onnx_model(domain="com.microsoft", operator="Gelu"), "onnx", "needs operator Gelu of com.microsoft"),
        (changed(onnx_model(), hidden_custom_operator), "onnx", "needs operator Evil of evil.lib"),
        (onnx_model()[:-20], "onnx", "no ONNX model, or is truncated"),
        (b"", "onnx", "no ONNX model, or is truncated"),
        (b"\x00" * 100, "onnx", "no ONNX model, or is truncated"),
        (onnx_model(), "tflite", "is called .tflite and is no TFLite model"),
        (b"\x1c\x00\x00\x00TFL3", "tflite", "truncated or damaged"),
        (b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64, "tflite", "truncated or damaged"),
    ],
)
def test_hostile_files_are_refused_in_one_line(content: bytes, form: ModelFormat, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_model("mine", content, form)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine ")
    assert "\n" not in str(caught.value)


def test_hostile_tflite_files_are_refused_in_one_line(tflite: bytes) -> None:
    with pytest.raises(UsageError, match=r"is called \.onnx and is a TFLite model"):
        check_model("mine", tflite, "onnx")
    for kept in (len(tflite) // 2, len(tflite) - 100, 40):
        with pytest.raises(UsageError, match="truncated or damaged"):
            check_model("mine", tflite[:kept], "tflite")


class Huge(bytes):
    """Bytes that say that they are many."""

    def __len__(self) -> int:
        return MAX_MODEL_BYTES + 1


def test_a_file_beyond_the_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="agents are sent model files of at most 537 MB"):
        check_model("mine", Huge(onnx_model()), "onnx")


def tflite_with(code: int = 0, custom: str | None = None, offset: int = 0) -> bytes:
    """A TFLite model of one operator code, one buffer and one input."""
    builder = flatbuffers.Builder(256)
    name, text = builder.CreateString("x"), builder.CreateString(custom) if custom else None
    builder.StartVector(4, 2, 4)
    builder.PrependInt32(8)
    builder.PrependInt32(1)
    shape = builder.EndVector()
    tensor = table(builder, 8, {0: ("offset", shape), 3: ("offset", name)})
    builder.StartVector(4, 1, 4)
    builder.PrependInt32(0)
    inputs = builder.EndVector()
    tensors = tables(builder, [tensor])
    graph = table(builder, 5, {0: ("offset", tensors), 1: ("offset", inputs)})
    fields: dict[int, tuple[str, int]] = {0: ("int8", min(code, 127)), 3: ("int32", code)}
    operator = table(builder, 4, fields | ({1: ("offset", text)} if text is not None else {}))
    buffer = table(builder, 3, {1: ("uint64", offset)})
    graphs, codes, buffers = (tables(builder, [each]) for each in (graph, operator, buffer))
    root = table(builder, 8, {1: ("offset", codes), 2: ("offset", graphs), 4: ("offset", buffers)})
    builder.Finish(root, b"TFL3")
    return bytes(builder.Output())


def table(builder: Any, slots: int, fields: dict[int, tuple[str, int]]) -> int:
    builder.StartObject(slots)
    for slot, (kind, value) in fields.items():
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            getattr(builder, f"Prepend{kind.capitalize().replace('Uint', 'Uint')}Slot")(slot, value, 0)
    return int(builder.EndObject())


def tables(builder: Any, places: list[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())


def test_custom_operators_and_outside_weights_of_tflite_are_found() -> None:
    plain = read_tflite(tflite_with(code=3))
    assert (plain.custom_operators, plain.has_outside_weights) == ((), False)
    assert [(each.name, each.sides) for each in plain.inputs] == [("x", (1, 8))]
    with pytest.raises(UsageError, match="needs custom operator FlexErf"):
        check_model("mine", tflite_with(code=32, custom="FlexErf"), "tflite")
    with pytest.raises(UsageError, match="keeps weights outside of its tables"):
        check_model("mine", tflite_with(code=3, offset=4096), "tflite")


def test_no_damage_leads_out_of_a_tflite_file(tflite: bytes) -> None:
    """Each 32-bit word becomes a wild offset in turn: an answer or a clear error, nothing else."""
    content = tflite_with(code=3)
    for place in range(len(content) - 4):
        for wild in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(content), 3):
            damaged = content[:place] + struct.pack("<I", wild) + content[place + 4 :]
            with contextlib.suppress(BrokenTableError):
                read_tflite(damaged)


def test_formats_by_suffix_and_runtime() -> None:
    assert format_of(Path("a.ONNX")) == "onnx"
    with pytest.raises(UsageError, match=r"^\. is neither \.onnx nor \.tflite"):
        format_of(Path("."))
    with pytest.raises(UsageError, match=r"neither \.onnx nor \.tflite"):
        format_of(Path("a.pt"))
    assert (
        takes_format("onnxruntime", "onnx") == takes_format("litert", "tflite") == takes_format("adb", "tflite") == ""
    )
    assert "takes no .onnx files" in takes_format("litert", "onnx")
    assert "takes no .onnx files" in takes_format("command", "onnx")  # a user's program is given none


# -- measuring --------------------------------------------------------------------------------------------------


def order(
    folder: Path, digits: SupernetBundle, content: bytes, runtime: Any = "onnxruntime", **changes: Any
) -> ModelOrder:
    path = folder / "blob"
    path.write_bytes(content)
    form = "tflite" if runtime == "litert" else "onnx"
    sha256 = hashlib.sha256(content).hexdigest()
    values: dict[str, Any] = {
        "bundle_path": str(digits.path),
        "bundle_sha256": digits.sha256,
        "model_path": str(path),
        "model": ModelReference(sha256=sha256, size=len(content), format=form),
        "setting": RuntimeSetting(runtime=runtime),
        "protocol": QUICK,
        "references": ReferenceOrder(),
    }
    return ModelOrder(**{**values, **changes})


def execute(order: ModelOrder) -> Any:
    return OrderExecutor().execute(order, lambda phase, fraction: None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a peak of memory")
@pytest.mark.xdist_group("measuring-child")
def test_the_memory_of_a_model_does_not_depend_on_those_before_it(tmp_path: Path, digits: SupernetBundle) -> None:
    (largest,), setting = digits.space.decode(digits.space.largest()), RuntimeSetting()
    content = build_model(digits, largest, None, setting)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    model = ModelFile(path, content, (), hashlib.sha256(content).hexdigest(), len(content), {})
    found = [try_model(make_runtime("onnxruntime"), model, setting).memory_bytes for _ in range(3)]
    assert all(each is not None and each > len(content) for each in found), found


@pytest.mark.xdist_group("measuring-child")
@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_sent_model_is_measured_in_turns_with_references(
    tmp_path: Path, digits: SupernetBundle, tflite: bytes, runtime: str
) -> None:
    content = tflite if runtime == "litert" else onnx_model(side=64)
    reply = execute(order(tmp_path, digits, content, runtime))
    assert isinstance(reply, MeasuredReply)
    assert (reply.model_sha256, reply.model_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert reply.paired is not None
    assert reply.paired.reference in reply.levels_ms
    assert reply.memory_bytes is None or reply.memory_bytes >= 0


def test_a_sent_model_that_was_altered_is_fetched_again(tmp_path: Path, digits: SupernetBundle) -> None:
    made = order(tmp_path, digits, onnx_model())
    Path(made.model_path).write_bytes(onnx_model(side=9))
    with pytest.raises(HashMismatchError, match="fetched again"):
        execute(made)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (onnx_model(domain="com.microsoft", operator="Gelu"), {}, "needs operator Gelu"),
        (onnx_model(open_sides=True), {}, "--input-shape"),
        (onnx_model(), {"setting": RuntimeSetting(runtime="litert")}, "takes no .onnx files"),
    ],
)
def test_a_hostile_model_is_refused_on_the_device(
    tmp_path: Path, digits: SupernetBundle, content: bytes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        execute(order(tmp_path, digits, content, **changes))
    assert message in str(caught.value)


def test_a_slow_device_is_left_alone(tmp_path: Path, digits: SupernetBundle) -> None:
    references = ReferenceOrder(slow_above=1e-9)
    reply = execute(order(tmp_path, digits, onnx_model(), references=references))
    assert isinstance(reply, SlowReply)

"""Orders to measure a model file: an agent takes them only where its user allows it, and fetches the file as a blob."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from rigs.agent_rig import BLOB, BUNDLE, Rig, measured, task

from fleetnas.agent.cli.main import main
from fleetnas.agent.cli.options import set_defaults
from fleetnas.agent.cli.parsers import build_parser
from fleetnas.agent.measuring.messages import FailedReply, ModelOrder
from fleetnas.fleet_protocol.codec import decode_task, encode
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import Failed, Rejected, Result, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MAX_MODEL_BYTES, ModelReference, ModelTask

FILE = BLOB[:70_000]
MODEL = ModelReference(
    sha256=hashlib.sha256(FILE).hexdigest(), size=len(FILE), format="onnx", input_shapes={"x": (1, 3)}
)


def order(number: int = 1, **fields: Any) -> ModelTask:
    values = {**task(number).model_dump(exclude={"op", "architecture", "calibration", "profile"}), "model": MODEL}
    return ModelTask.model_validate({**values, **fields})


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, blobs=(BLOB, FILE))


def test_an_agent_takes_no_model_file_by_itself(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.send("pi", "task", order())
    rig.run(agent)
    (refused,) = rig.coordinator.updates("rejected")
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.task) == ("setting_unavailable", order().task)
    assert "--accept-models" in refused.detail
    assert rig.measurer.orders == []
    assert rig.coordinator.on("blob") == []


def test_an_agent_that_takes_them_fetches_the_file_and_measures_it(rig: Rig) -> None:
    agent = rig.agent(accepts_models=True)
    rig.run(agent)
    rig.measurer.script.append(measured(4.0).model_copy(update={"model_sha256": MODEL.sha256, "memory_bytes": 1234}))
    rig.coordinator.send("pi", "task", order())
    rig.run(agent)
    (sent,) = rig.measurer.orders
    assert isinstance(sent, ModelOrder)
    assert sent.model == MODEL
    assert Path(sent.model_path).read_bytes() == FILE
    assert sent.references is not None
    (result,) = {update.task: update for update in rig.coordinator.updates("result")}.values()
    assert isinstance(result, Result)
    assert (result.measurement.model_sha256, result.memory_bytes) == (MODEL.sha256, 1234)


def test_a_refusal_of_the_child_is_a_failure(rig: Rig) -> None:
    agent = rig.agent(accepts_models=True)
    rig.run(agent)
    reason = "the model file needs operator Gelu of com.microsoft"
    rig.measurer.script.append(FailedReply(reason="runtime", detail=reason, usage=True))
    rig.coordinator.send("pi", "task", order())
    rig.run(agent)
    (failed,) = {update.task: update for update in rig.coordinator.updates("failed")}.values()
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.detail) == ("runtime", reason)


@pytest.mark.parametrize(
    "model",
    [
        {**MODEL.model_dump(), "size": MAX_MODEL_BYTES + 1},
        {**MODEL.model_dump(), "size": 0},
        {**MODEL.model_dump(), "format": "pickle"},
        {**MODEL.model_dump(), "input_shapes": {"x": [0]}},
        {**MODEL.model_dump(), "input_shapes": {"x": [1] * 17}},
        {**MODEL.model_dump(), "path": "/etc/passwd"},
    ],
)
def test_impossible_references_are_no_orders(model: dict[str, Any]) -> None:
    document = json.loads(encode(order()))
    document["model"] = model
    with pytest.raises(ProtocolError):
        decode_task(json.dumps(document).encode())


def test_the_order_crosses_the_wire() -> None:
    made = order(setting=RuntimeSetting(threads=2), stored=(TaskKey(task_id="run.7", attempt=1),))
    assert decode_task(encode(made)).model_copy(update={"schema_minor": 0}) == made
    assert made.bundle == BUNDLE


@pytest.mark.parametrize("text", ["perhaps", ""])
def test_the_option_is_yes_or_no(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(("run", "--broker", "127.0.0.1", "--accept-models", text))
    assert ended.value.code == 2
    assert "is neither yes nor no" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "accepted"), [("yes", True), ("true", True), ("no", False), (None, False)])
def test_the_configuration_may_hold_the_option(text: str | None, accepted: bool) -> None:
    _, commands = build_parser("run")
    set_defaults(commands["run"], {} if text is None else {"accept_models": text})
    assert commands["run"].parse_args(["--broker", "127.0.0.1"]).accept_models is accepted
    assert commands["run"].parse_args(["--accept-models"]).accept_models is True
    assert commands["run"].parse_args(["--accept-models", "no"]).accept_models is False

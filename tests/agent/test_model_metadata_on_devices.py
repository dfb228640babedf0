"""The device writes the metadata of model files by itself: the measured bytes are those that ship."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from rigs.agent_rig import final_reply
from rigs.supernets import named_bundle

from fleetnas.agent.measuring.messages import MeasuredReply, MeasureOrder
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("digits")
PROTOCOL = MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=9, min_s=0, half_width_percent=1000)


def test_the_device_measures_the_bytes_that_ship(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    names = tuple(f"Klasse {i} ü" for i in range(10))
    bundle = named_bundle(tmp_path / "s.supernet", SPACE, names, "squash")
    (architecture,) = SPACE.decode(SPACE.smallest())
    models = BundleWinnerBuilder(bundle, None, None)
    worker = Worker(child_command(tmp_path / "lock"))
    try:
        for runtime in ("onnxruntime", "litert"):
            for precision in ("fp32", "int8"):
                setting = RuntimeSetting.model_validate({"runtime": runtime, "precision": precision})
                worker.submit(
                    MeasureOrder(
                        bundle_path=str(bundle.path),
                        bundle_sha256=bundle.sha256,
                        architecture=architecture,
                        setting=setting,
                        protocol=PROTOCOL,
                    )
                )
                reply = final_reply(worker)
                assert isinstance(reply, MeasuredReply), reply
                model = models.calibrate(architecture, setting)
                assert reply.model_sha256 == model.sha256
                shipped = models.file(model)
                assert hashlib.sha256(shipped).hexdigest() == reply.model_sha256
                assert "Klasse 9 ü".encode() in shipped
    finally:
        worker.close()

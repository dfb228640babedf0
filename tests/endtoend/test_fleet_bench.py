"""Model files on real agents: in both runtimes, and beside a search; an agent that takes none says so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rigs import waiting
from rigs.model_files import onnx_model
from rigs.process_fleet import QUICK, Fleet, process_fleet

from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.model_file import build_model

pytestmark = pytest.mark.xdist_group("measuring-child")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with process_fleet(tmp_path) as found:
        yield found


@pytest.fixture
def files(fleet: Fleet) -> tuple[Path, Path]:
    """An ONNX and a TFLite file."""
    onnx, tflite = fleet.folder / "mine.onnx", fleet.folder / "mine.tflite"
    onnx.write_bytes(onnx_model(side=48))
    bundle = SupernetBundle.open(fleet.supernet)
    (smallest,) = bundle.space.decode(bundle.space.smallest())
    tflite.write_bytes(build_model(bundle, smallest, None, RuntimeSetting(runtime="litert")))
    return onnx, tflite


def output_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout is not None
    with waiting.watching(process):
        text = process.stdout.read()
    return waiting.ended(process), text


def start_agent(fleet: Fleet, name: str, *options: str) -> None:
    state = str(fleet.folder / "agents")
    common = ("--broker", str(fleet.broker.address), "--name", name, "--state-dir", state)
    fleet.start("fleetnas-agent", "run", *common, *options)


def test_bench_measures_files_on_every_agent_that_takes_them(fleet: Fleet, files: tuple[Path, Path]) -> None:
    start_agent(fleet, "both", "--setting", "onnxruntime", "--setting", "litert", "--accept-models")
    start_agent(fleet, "careful", "--runtime", "onnxruntime")
    bench = fleet.start(
        *("fleetnas", "bench", *map(str, files), "--broker", str(fleet.broker.address), "--devices", "both,careful"),
        *(*QUICK, "--json"),
        pipe=True,
    )
    code, text = output_of(bench)
    assert code == 1, fleet.complaints()  # one agent took no file
    rows = {(row["device"], row["runtime"], row["name"]): row for row in json.loads(text)["rows"]}
    onnx, litert = "onnxruntime_cpu_1t_fp32", "litert_cpu_1t_fp32"
    assert len(rows) == 6
    for runtime, name in ((onnx, "mine.onnx"), (litert, "mine.tflite")):
        row = rows["both", runtime, name]
        assert row["reason"] == ""
        assert row["measurements"] >= 3
        assert row["latency_ms"] > 0
        assert row["quality"] in ("ok", "noisy", "slowed")
        assert row["model_bytes"] == (fleet.folder / name).stat().st_size
    assert (
        rows["both", onnx, "mine.tflite"]["reason"] == "runtime onnxruntime takes no .tflite files (litert and adb do)"
    )
    assert rows["both", litert, "mine.onnx"]["reason"].startswith("runtime litert takes no .onnx files")
    assert "--accept-models" in rows["careful", onnx, "mine.onnx"]["reason"]


def test_a_search_measures_its_baselines(fleet: Fleet, files: tuple[Path, Path]) -> None:
    start_agent(fleet, "pi", "--runtime", "onnxruntime", "--accept-models")
    search = fleet.new_search(
        *("--baseline", "largest", "--baseline", str(files[0]), "--baseline-accuracy", "50"),
        *("--budget", "6", "--fixed-protocol"),
        targets="1000",
    )
    code, _ = output_of(search)
    assert code == 0, fleet.complaints()
    (device,) = fleet.results()["fleet"]
    rows: dict[str, Any] = {row["name"]: row for row in device["baselines"]}
    assert list(rows) == ["largest", "mine.onnx"]
    for row in rows.values():
        ((compared,),) = (row["comparisons"],)
        (target,) = device["targets"]
        if compared["speed_basis"] == "same-file":
            assert compared["speedup"] == 1.0
        elif compared["speed_basis"] != "undisturbed":
            assert compared["speedup"] == pytest.approx(row["latency_ms"] / target["verified_ms"])
    assert rows["mine.onnx"]["accuracy"] == 0.5
    assert rows["mine.onnx"]["comparisons"][0]["accuracy_basis"] == "given"
    assert rows["largest"]["comparisons"][0]["accuracy_basis"] == "evaluated"
    page = (fleet.out / "report.html").read_text()
    assert "Winners against it" in page
    assert "mine.onnx" in page

"""What stands in for devices that are not at hand: programs first on `PATH`, modules first on `PYTHONPATH`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parent / "stand_ins"
#: Runs a model in onnxruntime and prints what the command runtime wants to read.
PROGRAM = """\
import json, os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime
model, threads, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
try:
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
except Exception as error:
    sys.exit(f"not a model: {error}")
feeds = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
times = []
for _ in range(runs + 3):
    begin = time.perf_counter()
    session.run(None, feeds)
    times.append(1000 * (time.perf_counter() - begin))
print(json.dumps({"times_ms": times[3:], "provider": "cpu", "warm_up_s": sum(times[:3]) / 1000}))
"""


def attach_phone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`stand_ins/adb` with one phone on which benchmark_model is installed; the phone's file system."""
    phone = folder / "phone"
    tool = phone / "data/local/tmp/benchmark_model"
    tool.parent.mkdir(parents=True)
    tool.touch()
    programs = folder / "bin"
    programs.mkdir()
    shutil.copy(STAND_INS / "adb", programs / "adb")
    (programs / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(phone))
    return phone


def become_jetson(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVIDIA's onnxruntime in every child process, and nvpmodel; the file that tells what onnxruntime did."""
    inherited = os.environ.get("PYTHONPATH")
    places = [str(STAND_INS / "jetson"), *([inherited] if inherited else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    monkeypatch.setenv("PATH", f"{STAND_INS / 'jetson' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    log = folder / "jetson.log"
    log.touch()
    monkeypatch.setenv("JETSON_LOG", str(log))
    return log


def provide_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own program for the command runtime, which really runs the model on the processor."""
    program = folder / "bench.py"
    program.write_text(PROGRAM)
    monkeypatch.setenv("FLEETNAS_COMMAND", f"{sys.executable} {program} {{model}} {{threads}} {{runs}}")

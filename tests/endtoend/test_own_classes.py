"""Images of the user's own classes, from folders to the files that a search leaves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from rigs.command_line import fleetnas
from rigs.process_fleet import QUICK
from rigs.untrained_supernet import write_untrained

pil = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.xdist_group("endtoend")

NAMES = ("zero", "Ünnütz", "木", "three <b>", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 65536, (20, 30), dtype=np.uint16)
            pil.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_a_search_takes_the_names_into_everything_that_it_leaves(tmp_path: Path, images: Path) -> None:
    supernet = write_untrained(tmp_path / "s.supernet", class_names=NAMES)
    command = [
        *(sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()", "search", "--local", "--json"),
        *("--supernet", str(supernet), "--targets", "1000", "--budget", "3", *QUICK),
        *("--calibration-images", str(images), "--evaluation-images", str(images)),
        *("--store", str(tmp_path / "runs.sqlite"), "--state-dir", str(tmp_path / "state")),
        *("--out", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLEETNAS_HOST_LOCK": str(tmp_path / "lock")}
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, start_new_session=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    supernet_result = results["supernet"]
    assert supernet_result["dataset"] == "patterns"
    assert tuple(supernet_result["class_names"]) == NAMES
    assert supernet_result["preprocessing"]["fit"] == "crop"
    models = 0
    for device in results["fleet"]:
        for target in device["targets"]:
            models += 1
            path = tmp_path / "out" / target["model"]
            content = path.read_bytes()
            assert hashlib.sha256(content).hexdigest() == target["sha256"]
            card = json.loads(path.with_suffix(".json").read_text())
            assert card["supernet"] == supernet_result
            assert target["accuracy_images"] == 20
            if path.suffix == ".onnx":
                found = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
                assert tuple(json.loads(found["class_names"])) == NAMES
            else:
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    assert tuple(archive.read("labels.txt").decode().splitlines()) == NAMES
    assert models > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Ünnütz, 木, three &lt;b&gt;" in page


def test_a_renamed_folder_ends_an_evaluation(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supernet = str(write_untrained(tmp_path / "s.supernet", class_names=NAMES))
    (images / "zero").rename(images / "Zero ")
    code, out, err = fleetnas(capsys, "evaluate", supernet, "smallest", "--images", str(images))
    assert (code, out) == (2, "")
    assert "'Zero ' is no class (the nearest is 'zero'); 'zero' has no folder; name each folder" in " ".join(
        err.split()
    )
    assert "Traceback" not in err


def test_some_classes_are_evaluated_where_it_is_said(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supernet = str(write_untrained(tmp_path / "s.supernet", class_names=NAMES))
    for name in NAMES[3:]:
        shutil.rmtree(images / name)
    command = ("evaluate", supernet, "smallest", "--images", str(images), "--json")
    code, _, err = fleetnas(capsys, *command)
    assert code == 2
    assert "--some-classes" in err
    code, out, err = fleetnas(capsys, *command, "--some-classes")
    assert (code, err) == (0, "")
    assert json.loads(out)["accuracy_images"] == 6

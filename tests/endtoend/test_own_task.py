"""The page about one's own images: every command, in its order and as it is written, on a small set of images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from rigs.page_commands import command_blocks, own_environment, run_block
from rigs.striped_images import write_images

pytest.importorskip("torch")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-task.md"


@pytest.mark.soak
def test_the_page_leads_from_a_folder_of_images_to_verified_models(tmp_path: Path) -> None:
    for seed, (part, count) in enumerate((("train", 24), ("val", 8), ("test", 8))):
        write_images(tmp_path / "data" / part, count, seed=seed)
    log = tmp_path / "page.log"
    for block in command_blocks(PAGE):
        run_block(block, tmp_path, own_environment(tmp_path), log)
    results = json.loads((tmp_path / "run/results/results.json").read_text())
    assert results["targets_asked"] == 6
    assert results["supernet"]["class_names"] == ["across", "down", "spots"]
    found = {path: json.loads(path.read_text()) for path in (tmp_path / "run/results").glob("*/*/*ms.json")}
    assert len(found) == results["targets_met"] > 0
    for path, card in found.items():
        model = (path.parent / card["model"]).read_bytes()
        assert hashlib.sha256(model).hexdigest() == card["sha256"]
    tuned = [card for card in found.values() if card["replaces"] is not None]
    # A fine-tuned model takes its winner's place where the device met the target again, and nowhere else.
    measured = log.read_text().count("1 of 1 target met by a fresh re-measurement")
    assert len(tuned) == measured > 0
    assert (tmp_path / "run/smallest.onnx").stat().st_size > 0

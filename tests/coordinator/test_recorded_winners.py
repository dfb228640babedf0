"""Simulated campaigns end as they did when they were recorded: rearranged code finds the same winners."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from rigs import recorded_winners

RECORDER = Path(recorded_winners.__file__)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="recorded with x86-64 arithmetic")
def test_campaigns_end_with_the_recorded_winners() -> None:
    recorded = json.loads(RECORDER.with_suffix(".json").read_text(encoding="utf-8"))
    command = [sys.executable, str(RECORDER)]
    found = subprocess.run(command, env=recorded_winners.arithmetic(), capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == recorded
    fates = [met for campaign in recorded.values() for targets in campaign["winners"].values() for _, met, _ in targets]
    assert fates.count(True) > 70

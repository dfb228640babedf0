"""SIGTERM and Ctrl-C while an agent still probes its device: it ends at once, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rigs import waiting

#: Stands in for an accelerator's library that takes minutes to load: says that it is loaded now, and never is.
_SLOW = """\
import os, time
with open(os.environ["PROBING"], "w") as pipe:
    pipe.write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_probes_ends_at_once_when_it_is_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    library, temporary, pipe = tmp_path / "library", tmp_path / "temporary", tmp_path / "pipe"
    library.mkdir()
    temporary.mkdir()
    (library / "onnxruntime.py").write_text(_SLOW)
    os.mkfifo(pipe)
    environment = {
        **os.environ,
        "PYTHONPATH": str(library),
        "PROBING": str(pipe),
        "TMPDIR": str(temporary),
        "FLEETNAS_HOST_LOCK": str(tmp_path / "lock"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    command = [sys.executable, "-m", "fleetnas.agent", "run", "--broker", "127.0.0.1:1", "--runtime", "onnxruntime"]
    command += ["--state-dir", str(tmp_path / "state"), "--name", "pi"]
    agent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    child = int(pipe.read_text())
    try:
        agent.send_signal(number)
        _, said = waiting.outputs(agent)
        waiting.until(lambda: waiting.gone(child), what="the child outlived its agent")
    finally:
        agent.kill()
    assert agent.returncode == 0, said
    assert "stopped before the fleet was joined" in said
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []

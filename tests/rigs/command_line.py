"""The command line `fleetnas` in the test's own process."""

from __future__ import annotations

import sys

import pytest

from fleetnas.coordinator.cli import main


def fleetnas(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command; returns exit code, standard output and standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fleetnas", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    output = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), output.out, output.err

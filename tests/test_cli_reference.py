"""docs/cli.md says what the programs say."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_reference_of_the_command_lines_is_current() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        from cli_reference import PAGE, page
    finally:
        sys.path.remove(str(DOCS))
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/cli_reference.py"

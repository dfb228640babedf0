"""`python tests/emulated ARCHITECTURE`: install and run the agent on an emulated board; see docs/development.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boards import BOARDS
from campaign import BoardTrial
from debian_root import DebianRoot, EmulationError, say

_DEFAULT_FOLDER = Path("/tmp/fleetnas-emulation")


def main() -> int:
    """Exit code 1 with one message where the board fails."""
    parser = argparse.ArgumentParser(description="Install and run the agent on an emulated board (needs root).")
    parser.add_argument("architecture", choices=sorted(BOARDS))
    parser.add_argument("--fresh", action="store_true", help="make the board's file system root again")
    options = parser.parse_args()
    folder = Path(os.environ.get("FLEETNAS_EMULATION", _DEFAULT_FOLDER))
    board = BOARDS[options.architecture]
    # Emulation takes every core there is for minutes: it yields to whatever else runs here.
    os.nice(10)
    try:
        root = DebianRoot(folder, board)
        root.make(fresh=options.fresh)
        BoardTrial(root, root.work / "trial").run()
    except EmulationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"{board.architecture}: everything works")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line `fleetnas`."""

from __future__ import annotations

import sys

from fleet_protocol.errors import FleetnasError, UsageError


def main() -> None:
    """Entry point; exits with 0, 1 (broken, or not every target met), 2 (cannot be done as asked) or 130 (Ctrl-C)."""
    from coordinator.cli.app import app, complain

    try:
        app(_with_latest(sys.argv[1:]))
    except FleetnasError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        # What was to be put in place has two names, and the second is the one that was asked for.
        complain(f"{error.filename2 or error.filename}: {error.strerror}; check the path and who may write there")
        sys.exit(UsageError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _with_latest(arguments: list[str]) -> list[str]:
    """`--resume` may stand alone; options with an optional value are not in typer's vocabulary."""
    found: list[str] = []
    for place, word in enumerate(arguments):
        found.append(word)
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if word == "--resume" and following.startswith("-"):
            found.append("latest")
    return found

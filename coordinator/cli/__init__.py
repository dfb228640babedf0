"""The command line `fleetnas`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from fleetnas.device_profiles.plain_text import use_printable_streams
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError

#: How the system says that a stream or a file takes no more; a stream is not named.
_NO_ROOM = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Entry point; exits with 0, 1 (broken, or not every target met), 2 (cannot be done as asked) or 130 (Ctrl-C)."""
    use_printable_streams()
    from fleetnas.coordinator.cli.app import app, complain

    try:
        try:
            app(_with_latest(sys.argv[1:]))
        finally:
            sys.stdout.flush()  # here it can be told that it does not fit where it goes
    except FleetnasError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # What was to be put in place has two names, and the second is the one that was asked for.
        name = error.filename2 or error.filename
        if error.errno in _NO_ROOM:
            if name is None:
                _forget_output()
            if error.errno != errno.EPIPE:  # whoever read it has seen enough, such as `head`
                complain(f"{name or 'the output'}: {error.strerror}; make room there, and run the command again")
            sys.exit(FleetnasError.exit_code)
        if name is None:
            raise
        complain(f"{name}: {error.strerror}; check the path and who may write there")
        sys.exit(UsageError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _forget_output() -> None:
    """Let what is still buffered go nowhere; Python would complain of it once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: no file of the system's, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_latest(arguments: list[str]) -> list[str]:
    """`--resume` may stand alone; options with an optional value are not in typer's vocabulary."""
    found: list[str] = []
    for place, word in enumerate(arguments):
        found.append(word)
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if word == "--resume" and following.startswith("-"):
            found.append("latest")
    return found

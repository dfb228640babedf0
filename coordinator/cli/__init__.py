"""The command line `fleetnas`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from fleetnas.device_profiles.plain_text import use_printable_streams
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError

#: Errors of a stream or a file that takes no more; a stream has no name.
_NO_ROOM = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: Variable with which a shell asks for completions.
_COMPLETION = "_FLEETNAS_COMPLETE"


def main() -> None:
    """Run the command line; exits with 0, 1 (failure, or a target not met), 2 (wrong use) or 130 (Ctrl-C)."""
    use_printable_streams()
    import typer

    from fleetnas.coordinator.cli.app import app, complain
    from fleetnas.coordinator.cli.wrong_use import TyperError, explain, is_help

    if _COMPLETION in os.environ:
        from typer import completion

        completion.completion_init()  # type: ignore[attr-defined]
    try:
        try:
            code = typer.main.get_command(app).main(
                _with_latest(sys.argv[1:]), prog_name="fleetnas", standalone_mode=False
            )
        finally:
            sys.stdout.flush()  # here an output that does not fit can still be reported
    except TyperError as error:
        if is_help(error):
            sys.stderr.write(f"{explain(error)}\n")
        else:
            complain(explain(error))
        sys.exit(UsageError.exit_code)
    except FleetnasError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # A failed replacement has two names; the second is the one that was asked for.
        name = error.filename2 or error.filename
        if error.errno in _NO_ROOM:
            if name is None:
                _forget_output()
            if error.errno != errno.EPIPE:  # the reader has ended, for example `head`
                complain(f"{name or 'the output'}: {error.strerror}; make room there, and run the command again")
            sys.exit(FleetnasError.exit_code)
        if name is None:
            raise
        complain(f"{name}: {error.strerror}; check the path and who may write there")
        sys.exit(UsageError.exit_code)
    except typer.Abort:
        sys.exit(FleetnasError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _forget_output() -> None:
    """Discard buffered output; Python would report the same error again at its end."""
    with contextlib.suppress(
        OSError, ValueError
    ):  # ValueError: standard output is no file of the system, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_latest(arguments: list[str]) -> list[str]:
    """Give `search --resume` and `measure --resume` without a value the value `latest`; typer has no such options."""
    if arguments[:1] not in (["search"], ["measure"]):
        return arguments
    found: list[str] = []
    for place, word in enumerate(arguments):
        found.append(word)
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if word == "--resume" and following.startswith("-"):
            found.append("latest")
    return found

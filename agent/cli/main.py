"""The command line `fleetnas-agent`: its parser, its commands, its exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fleetnas.agent.cli.log_lines import write_error
from fleetnas.agent.cli.parsers import build_parser, command_of, unknown_option
from fleetnas.device_profiles.plain_text import use_printable_streams
from fleetnas.fleet_protocol.errors import FleetnasError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: with 0, with 1 if something is broken, with 2 if the request cannot be fulfilled."""
    use_printable_streams()
    try:
        options = parse_options(arguments)
        code = options.command(options)
        sys.stdout.flush()
        sys.exit(code)
    except FleetnasError as error:
        write_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has closed it, as `head` does; without this, Python would report it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:  # such as a folder that is closed to us, or a full disk
        if error.filename is None:
            raise
        write_error(f"{error.filename}: {error.strerror}; check the path and who may use it")
        sys.exit(1)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line, of the environment and of the configuration file, in this order.

    `configured_settings` and `configured_tags` hold what is configured. Raises `UsageError` if a value cannot be used.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser, subparsers = build_parser(command_of(words))
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise unknown_option(unknown[0], subparsers.get(options.command_name, parser))
    if "config" not in options:
        return options
    from fleetnas.agent.cli.configuration import read_configuration, settings_of
    from fleetnas.agent.cli.options import set_defaults, with_credentials

    values = read_configuration(options.config, os.environ)
    set_defaults(subparsers[options.command_name], values)
    options = parser.parse_args(words)
    configured = {"configured_settings": settings_of(values), "configured_tags": values.get("tags", "")}
    return with_credentials(argparse.Namespace(**vars(options), **configured))


if __name__ == "__main__":
    main()

"""`fleetnas broker init`, `broker renew`, `broker rotate`, `enroll`, `revoke`, `sign` and `verify`."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fleetnas.coordinator.cli.installer import InstallOptions, serving, wait_for_stop
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.coordinator.cli.option_groups import given as install_options
from fleetnas.device_profiles.text_files import read_text
from fleetnas.fleet_protocol.addresses import check_host
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import DEFAULT_TLS_PORT
from fleetnas.supernet_export.output_files import check_file, write_atomically

if TYPE_CHECKING:
    from fleetnas.coordinator.app.install_line import AgentSetup
    from fleetnas.coordinator.security.authority import Authority
    from fleetnas.coordinator.security.mosquitto import Login
    from fleetnas.fleet_protocol.security.credentials import Credentials

_AuthorityFolder = Annotated[
    Path,
    typer.Option(
        "--authority", metavar="DIR", envvar="FLEETNAS_AUTHORITY", help="The folder that `fleetnas broker init` made."
    ),
]
_Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="NAME", help="Name or address of the broker; repeat it. Agents use the first."),
]
#: Listening here reaches every network of this machine.
_EVERYWHERE = "0.0.0.0"


def register(app: typer.Typer) -> None:
    """Add the commands that stand alone."""
    app.command("enroll")(command(enroll))
    app.command("revoke")(revoke)
    app.command("sign")(sign)
    app.command("verify")(verify)


def register_broker(group: typer.Typer) -> None:
    """Add the commands below `fleetnas broker`."""
    group.command("init")(init)
    group.command("renew")(renew)
    group.command("rotate")(rotate)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder: the fleet's authority.")],
    host: _Hosts = None,
    fleet: Annotated[str, typer.Option("--fleet", metavar="NAME", help="Which fleet may use the broker.")] = "default",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Where the broker listens.")
    ] = DEFAULT_TLS_PORT,
    login: Annotated[
        str, typer.Option("--login", metavar="KIND", help="certificate or password, both over TLS.")
    ] = "certificate",
    install_at: Annotated[
        Path | None,
        typer.Option("--install-at", metavar="DIR", help="Where mosquitto's files will lie (default: where they are)."),
    ] = None,
) -> None:
    """Make an authority and a mosquitto configuration.

    The authority is private to the fleet; the configuration has TLS, access rules per agent, and limits.
    """
    from fleetnas.coordinator.security.authority import Authority

    if login not in ("certificate", "password"):
        raise UsageError(f"--login {login!r} is neither `certificate` nor `password`")
    hosts = _checked(host) if host else tuple(dict.fromkeys((*_own_name(), "localhost", "127.0.0.1")))
    authority = Authority.create(
        folder,
        fleet=fleet,
        hosts=hosts,
        now=_now(),
        port=port,
        login=cast("Login", login),
        broker_folder=install_at,
    )
    target = Path(authority.register.broker_folder)
    typer.echo(
        f"made, for fleet {fleet!r} with a broker at {', '.join(hosts)}, port {port}:\n"
        f"  {folder}/ca.key                   the authority's key; keep it, and keep it here\n"
        f"  {folder}/coordinator.credentials  for `fleetnas search --credentials`; it holds the key that signs orders\n"
        f"  {folder}/mosquitto/               what the broker's machine needs\n"
        "next:\n"
        f"{install_commands(authority, target, as_root=os.geteuid() == 0)}"
        f"  fleetnas enroll NAME --authority {folder} -o NAME.credentials     once for every agent\n"
        "  fleetnas-agent run --credentials NAME.credentials                 on that agent's device\n"
        f"  fleetnas search --credentials {folder}/coordinator.credentials ..."
    )


def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's authority.")], host: _Hosts = None
) -> None:
    """Issue a new certificate for the broker.

    With --host, under other names.
    """
    authority = _open(folder)
    issued = authority.renew_broker(_now(), _checked(host or ()))
    typer.echo(f"{folder}/mosquitto/server.pem is valid until {issued.expires:%Y-%m-%d}\n{_restart(authority)}")


def rotate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's authority.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The coordinator's new credentials.")
    ] = None,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Revoke the old ones now: agents pin the new key only.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Every agent has its new credentials: pin the newest key only.")
    ] = False,
) -> None:
    """Make a new signing key for the coordinator."""
    if finish and (output is not None or compromised):
        raise UsageError("--finish makes no new key, so --output and --compromised say nothing; leave them out")
    authority = _open(folder)
    if finish:
        authority.forget_old_keys()
        typer.echo("agents enrolled from now on pin the newest key only")
        return
    if output is None:
        raise UsageError("a new key needs --output FILE for the coordinator's new credentials")
    _check_output(output)
    credentials = authority.rotate_coordinator(output, _now(), compromised=compromised)
    typer.echo(f"{output}: signs with {_fingerprints(credentials.trusted_keys)}")
    if compromised:
        typer.echo(_restart(authority))
    typer.echo(
        f"next: fleetnas enroll NAME --renew --authority {folder} -o NEW for every agent, start it with that file, "
        f"then use {output} for every search"
        + ("" if compromised else f", then: fleetnas broker rotate {folder} --finish")
    )


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name in the fleet.")],
    authority: _AuthorityFolder,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file to write (default: NAME.credentials)."),
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Replace and revoke what it had before.")] = False,
    *,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Serve the agent and these credentials over TLS until Ctrl-C; print a line for the device."
        ),
    ] = False,
    install: InstallOptions,
) -> None:
    """Issue one agent's credentials, as a single file.

    Those of `watcher` are for `fleetnas watch` and `fleetnas devices`. With --serve it prints a line to paste on the
    agent's device: it installs the agent there, or updates it, and fetches the credentials, which are given once.
    """
    if serve and name == "watcher":
        raise UsageError("a watcher is no agent, and installs nothing on a device; leave out --serve")
    if not serve and (useless := install_options(install)):
        raise UsageError(f"only --serve serves the agent to a device; leave out {', '.join(useless)}")
    setup = install.setup()
    hosts = _reachable(install) if serve else ()
    opened = _open(authority)
    path = output or Path(f"{name}.credentials")
    _check_output(path)
    credentials = opened.enroll(name, path, _now(), renew=renew)
    if credentials.role == "watcher":
        typer.echo(
            f"{path}: may look at fleet {credentials.fleet} on broker {credentials.broker}, and say nothing\n"
            f"next: fleetnas watch --credentials {path.name}"
        )
        if renew or opened.register.login == "password":
            typer.echo(_restart(opened))
        return
    typer.echo(
        f"{path}: agent {name} of fleet {credentials.fleet}, broker {credentials.broker}, orders signed with "
        f"{_fingerprints(credentials.trusted_keys)}"
        + (
            ""
            if serve
            else "\nnext: bring it to the device over a way that you trust, then there: "
            f"fleetnas-agent run --credentials {path.name}\n"
            f"or, where the agent is not installed yet: fleetnas enroll {name} --authority {authority} --renew --serve"
        )
    )
    if renew or opened.register.login == "password":
        typer.echo(_restart(opened))
    if serve:
        _serve(opened, credentials, path, hosts, install, setup)


def _reachable(install: InstallOptions) -> tuple[str, ...]:
    """Return the addresses that devices reach; asked before an agent is enrolled, who is enrolled once."""
    from fleetnas.coordinator.app.reachable import addresses_for_devices

    hosts = (install.advertise,) if install.advertise else addresses_for_devices(install.install_host or _EVERYWHERE)
    if not hosts:
        raise UsageError("this machine has no address in a network; give the one that devices reach with --advertise")
    return hosts


def _serve(
    authority: Authority,
    credentials: Credentials,
    path: Path,
    hosts: tuple[str, ...],
    install: InstallOptions,
    setup: AgentSetup,
) -> None:
    """Serve the agent and its credentials with a certificate of the fleet's authority."""
    from fleetnas.coordinator.app.install_server import ServerIdentity

    host = install.install_host or _EVERYWHERE
    issued = authority.install_server_identity(hosts, _now())
    setup = replace(setup, fleet=credentials.fleet, name=credentials.name, authority=authority.certificate)
    identity = ServerIdentity(issued.certificate, issued.key)
    with serving(install, host, setup, identity=identity, credentials=path.read_bytes()):
        wait_for_stop()


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An enrolled agent.")], authority: _AuthorityFolder
) -> None:
    """Shut an agent out of the fleet."""
    opened = _open(authority)
    opened.revoke(name, _now())
    typer.echo(f"{name} is revoked\n{_restart(opened)}")


def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as a .supernet bundle.")],
    credentials: Annotated[
        Path, typer.Option("--credentials", metavar="FILE", help="The coordinator's, whose key signs.")
    ],
) -> None:
    """Sign a file that is fetched another way.

    Writes FILE.sig beside it.
    """
    from fleetnas.fleet_protocol.security.credentials import read_credentials
    from fleetnas.fleet_protocol.security.signing import sign_file

    found = read_credentials(credentials, "coordinator")
    if found.private_key is None:
        raise UsageError(f"{credentials} hold no signing key; take those that `fleetnas broker init` made")
    signature = Path(f"{file}.sig")
    check_file("the signature", signature, ".sig")
    text = sign_file(found.private_key, file)
    write_atomically(signature, text.encode() + b"\n")
    typer.echo(f"{signature}: signed with {_fingerprints(found.trusted_keys)}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file with its FILE.sig beside it.")],
    credentials: Annotated[
        Path, typer.Option("--credentials", metavar="FILE", help="An agent's or the coordinator's.")
    ],
) -> None:
    """Check a file against the coordinator's signature."""
    from fleetnas.fleet_protocol.security.credentials import read_credentials
    from fleetnas.fleet_protocol.security.signing import verify_file

    try:
        signature = read_text(Path(f"{file}.sig")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}.sig cannot be read ({error}); fetch it together with the file") from error
    found = read_credentials(credentials)
    verify_file(found.trusted_keys, file, signature)
    typer.echo(f"{file}: as it was signed with one of {_fingerprints(found.trusted_keys)}")


def _check_output(path: Path) -> None:
    """Check the output file before anything is issued or revoked: unwritten credentials would be lost."""
    check_file("--output", path, ".credentials", ".json")


def _checked(hosts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_host(host) for host in hosts))


def _own_name() -> tuple[str, ...]:
    """Return this machine's name, where a certificate can hold it."""
    try:
        return (check_host(platform.node()),)
    except UsageError:
        return ()


def _open(folder: Path) -> Authority:
    from fleetnas.coordinator.security.authority import Authority

    return Authority.open(folder)


def install_commands(authority: Authority, target: Path, *, as_root: bool) -> str:
    """Return the commands that start mosquitto with the files in `target`, as root or as another user."""
    here = authority.broker_files
    if target == here.absolute():
        if as_root:
            return (
                "  mosquitto that root starts becomes the user mosquitto, who cannot read this folder: make the\n"
                "  authority again with --install-at /etc/mosquitto/fleetnas, or as the user who will start mosquitto\n"
            )
        return f"  mosquitto -c {target}/mosquitto.conf                          on this machine, as this user\n"
    return (
        f"  copy {here}/ to {target}/ on the broker's machine, then there:\n"
        f"  sudo chown -R mosquitto: {target} && sudo chmod 700 {target}\n"
        f"  sudo mosquitto -c {target}/mosquitto.conf -d                      (or as a service, see docs/brokers.md)\n"
    )


def _restart(authority: Authority) -> str:
    register = authority.register
    target, here = Path(register.broker_folder), authority.broker_files
    copy = "" if target == here.absolute() else f"copy {here}/ to {target}/ on the broker's machine, and "
    return (
        f"next: {copy}restart mosquitto, which takes note of it only then; agents come back by themselves and nothing "
        "measured is lost"
    )


def _fingerprints(keys: tuple[bytes, ...]) -> str:
    from fleetnas.fleet_protocol.security.signing import fingerprint

    return ", ".join(fingerprint(key) for key in keys)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)

"""The line that installs or updates an agent where it is pasted, and the files that it fetches."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from fleetnas.coordinator.app.install_server import ServedFile
from fleetnas.coordinator.app.own_wheel import OwnWheel

_TEMPLATE = Path(__file__).with_name("agent_install.sh")
_SCRIPT_PATH = "/install"
#: Fetches URL to FILE with whatever the device has. Over TLS the certificate is not checked here: the script's hash is.
_FETCH = (
    'curl -{k}fsSo "$f" --noproxy \\* "$u" 2>/dev/null || wget {w}-qO "$f" "$u" 2>/dev/null || '
    'python3 -c "import ssl,sys,urllib.request as r; '
    'open(sys.argv[2],\\"wb\\").write(r.urlopen(sys.argv[1]{p}).read())" "$u" "$f"'
)


@dataclass(frozen=True)
class AgentSetup:
    """Configuration of the agents that a script installs."""

    broker: str = ""
    """Address of the broker as the device reaches it; empty: it is in the credentials, or configured there."""
    fleet: str = "default"
    name: str = ""
    """Of one agent; empty: each device chooses its own."""
    extras: str = ""
    """Extras of fleetnas, joined by commas; empty: chosen by the device's word size."""
    index_url: str = ""
    """Package index of the dependencies; empty: the one that pip is set to on the device."""
    authority: str = ""
    """Certificate, PEM, that the server's is checked with; empty: a server without TLS."""


def install_script(setup: AgentSetup, wheel: OwnWheel, url: str) -> bytes:
    """Return the script that a server at `url` serves beside the wheel."""
    values = {
        "URL": url,
        "WHEEL": wheel.name,
        "WHEEL_SHA256": wheel.sha256,
        "BROKER": setup.broker,
        "FLEET": setup.fleet,
        "NAME": setup.name,
        "EXTRAS": setup.extras,
        "INDEX_URL": setup.index_url,
        "AUTHORITY": setup.authority.strip(),
    }
    script = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        script = script.replace(f"{name}=@{name}@\n", f"{name}={shlex.quote(value)}\n", 1)
    return script.encode()


def install_files(script: bytes, wheel: OwnWheel) -> list[ServedFile]:
    """Return the files that the line and the script fetch, credentials excepted."""
    return [
        ServedFile(_SCRIPT_PATH, script, "text/x-shellscript; charset=utf-8"),
        ServedFile(f"/{wheel.name}", wheel.content, "application/zip"),
    ]


def install_line(url: str, script: bytes, *, token: str = "") -> str:
    """Return the line to paste on a device: it fetches the script from `url`, checks its hash, and runs it.

    Options of the script may follow it. With `token` the device fetches credentials too.
    """
    tls = url.startswith("https:")
    fetch = _FETCH.format(
        k="k" if tls else "",
        w="--no-check-certificate " if tls else "",
        p=",context=ssl._create_unverified_context()" if tls else "",
    )
    checked = f'echo "{hashlib.sha256(script).hexdigest()}  $f" | sha256sum -c >/dev/null 2>&1'
    advice = "cannot be fetched, or is not what this line was made for; run the command of the coordinator again"
    steps = (
        f"u={url}{_SCRIPT_PATH}; f=$(mktemp) || exit 1; {fetch}; "
        f'{checked} || {{ echo "fleetnas: $u {advice}" >&2; rm -f "$f"; exit 1; }}; '
        'sh "$f" "$@"; s=$?; rm -f "$f"; exit $s'
    )
    return f"sh -c '{steps}' install" + (f" --token {token}" if token else "")
